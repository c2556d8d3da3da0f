"""What one rg_lru_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.rg_lru.cost import index_bytes


def cost(case: Case) -> Cost:
    """Read dy, x, y and the weights, write dx and the weights' gradients; six products of a gate's size."""
    elements = case["B"] * case["T"] * case["D"]
    weights = 2 * case["H"] * case["n"] * (case["n"] + 1) + case["D"]
    size = case.bytes_per_element()
    # per gate: z again, dz W^T, x^T dz
    # biases 2; log a 2; v 1; g 2; da 1; dm 2; dv 1; d log a 4; dz_i 5; dz_r 4; sums 4; dx 3
    # sigmoid twice, exp, expm1, sqrt, rsqrt
    return Cost(
        bytes_read=(3 * elements + weights) * size + index_bytes(case),
        bytes_written=(elements + weights) * size,
        tensor_flops=6 * 2 * elements * case["n"],
        vector_flops=31 * elements,
        special_ops=6 * elements,
    )
