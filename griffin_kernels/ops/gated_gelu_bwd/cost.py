"""What the gradient of one gated_gelu costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.temporal_conv1d.cost import GELU_FLOPS, GELU_SPECIALS

SLOPE_FLOPS = 7
"""Of gelu's derivative beside gelu itself: another polynomial 2, its product with z 1, 1 - s, two products, a sum 4."""


def cost(case: Case) -> Cost:
    """Read dout, gate and value, write two gradients; gelu and its slope done again, three products per element."""
    count, size = elements(case), case.bytes_per_element()
    flops = GELU_FLOPS + SLOPE_FLOPS + 3
    return Cost(3 * count * size, 2 * count * size, vector_flops=flops * count, special_ops=GELU_SPECIALS * count)
