"""What one recurrent_block_bwd costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import Case, Cost
from griffin_kernels.ops.recurrent_block.cost import weight_elements
from griffin_kernels.ops.recurrent_block_step.cost import GELU_FLOPS, GELU_SPECIALS
from griffin_kernels.ops.rg_lru.cost import index_bytes


def cost(case: Case) -> Cost:
    """Read dout, x, y, h and the weights, write dx, dy and the weights' gradients."""
    elements = case["B"] * case["T"] * case["D"]
    weights = weight_elements(case)
    size = case.bytes_per_element()
    # rg_lru_bwd's 31; the convolution again, its dx and dweight: 6 K; gelu, its slope 8, two products and dout G 4
    return Cost(
        bytes_read=(4 * elements + weights) * size + index_bytes(case),
        bytes_written=(2 * elements + weights) * size,
        tensor_flops=6 * 2 * elements * case["n"],
        vector_flops=(31 + 6 * case["K"] + GELU_FLOPS + 12) * elements,
        special_ops=(6 + GELU_SPECIALS) * elements,
    )
