"""recurrent_block piece by piece in PyTorch: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Pass
from griffin_kernels.ops.recurrent_block_step.cost import GELU_FLOPS, GELU_SPECIALS
from griffin_kernels.ops.rg_lru import unfused as lru
from griffin_kernels.ops.temporal_conv1d import unfused as conv


def passes(case: Case) -> tuple[Pass, ...]:
    """Those of the convolution and of rg_lru, then gelu and the product."""
    elements, size = case["B"] * case["T"] * case["D"], case.bytes_per_element()
    return (
        *conv.passes(case),
        *lru.passes(case),
        Pass.elementwise(elements, size, size, vector=GELU_FLOPS, special=GELU_SPECIALS),
        Pass.elementwise(elements, 2 * size, size, vector=1),
    )
