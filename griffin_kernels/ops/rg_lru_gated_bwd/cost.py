"""What one rg_lru_gated_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.rg_lru.cost import index_bytes


def cost(case: Case) -> Cost:
    """Read dy, x, both pre-activations and y, write dx and both their gradients: eight streams."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    # log a 2; v 1; g 2; da 1; dm 2; dv 1; d log a 4; dz_i 5; dz_r 4; sums 2; dx 2
    # sigmoid twice, exp, expm1, sqrt, rsqrt
    return Cost(
        bytes_read=(5 * elements + case["D"]) * size + index_bytes(case),
        bytes_written=(3 * elements + case["D"]) * size,
        vector_flops=26 * elements,
        special_ops=6 * elements,
    )
