"""What one temporal_conv1d_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.rg_lru.cost import index_bytes
from griffin_kernels.ops.temporal_conv1d.cost import activation_flops, state_elements, weight_elements


def cost(case: Case) -> Cost:
    """Read dy, x and the weights, write dx and the weights' gradients; 2 K multiply-adds and a sum per element.

    With an activation the bias is read too, and the convolution done again with the slope of each of its sums.
    """
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    weights, state = weight_elements(case), state_elements(case)
    active = activation_flops(case) > 0
    again = 2 * case["K"] + activation_flops(case) + 5 if active else 0  # the slope 4, its product 1
    return Cost(
        bytes_read=(2 * elements + weights - (0 if active else case["D"]) + 2 * state) * size + index_bytes(case),
        bytes_written=(elements + weights + state) * size,
        vector_flops=(4 * case["K"] + 1 + again) * elements,
        special_ops=elements if active else 0,
    )
