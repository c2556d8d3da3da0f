"""gated_gelu as ``eager.published`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Pass
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.temporal_conv1d.cost import GELU_FLOPS, GELU_SPECIALS


def passes(case: Case) -> tuple[Pass, ...]:
    """gelu, then the product, each in the data's dtype through memory."""
    count, size = elements(case), case.bytes_per_element()
    return (
        Pass.elementwise(count, size, size, vector=GELU_FLOPS, special=GELU_SPECIALS),
        Pass.elementwise(count, 2 * size, size, vector=1),
    )
