"""temporal_conv1d as ``eager.shifted`` composes it of PyTorch's kernels: what fusing saves. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Pass
from griffin_kernels.ops.temporal_conv1d.cost import activation_flops


def passes(case: Case) -> tuple[Pass, ...]:
    """One multiply-add per tap over a float32 accumulator; with positions, each tap's input is masked first.

    An activation is one more pass over the accumulator, a residual one that reads it too.
    """
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    earlier = case["K"] - 1
    narrow = size < 4
    masked = "segmented" in case.flags
    return (
        *([Pass.elementwise(elements, size, 4)] if narrow else []),
        Pass.elementwise(elements, 4, 4, vector=2),
        *([Pass.elementwise(elements, 4, 4, count=earlier)] if masked and earlier else []),
        *([Pass.elementwise(elements, 8, 4, vector=2, count=earlier)] if earlier else []),
        *([Pass.elementwise(elements, 4, 4, vector=own, special=1)] if (own := activation_flops(case)) else []),
        *([Pass.elementwise(elements, 4 + size, 4, vector=1)] if "residual" in case.flags else []),
        *([Pass.elementwise(elements, 4, size)] if narrow else []),
    )
