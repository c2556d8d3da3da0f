"""What one recurrent_block costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.nearness import Nearness
from griffin_kernels.ops.recurrent_block_step.cost import GELU_FLOPS, GELU_SPECIALS
from griffin_kernels.ops.rg_lru.cost import FLAGS as FLAGS
from griffin_kernels.ops.rg_lru.cost import index_bytes

NEAR = Nearness(exact_dims=("K",), free_dims=("n", "N"))
"""What look-up compares."""


def weight_elements(case: Case) -> int:
    """Of the convolution, both gates, their biases and a_param."""
    return 2 * case["H"] * case["n"] * (case["n"] + 1) + (case["K"] + 2) * case["D"]


def cost(case: Case) -> Cost:
    """Read x, y and all weights, write out; the convolution, rg_lru and gelu inside. The states are left out."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(2 * elements + weight_elements(case)) * size + index_bytes(case),
        bytes_written=elements * size,
        tensor_flops=2 * 2 * elements * case["n"],
        vector_flops=(9 + 2 * case["K"] + GELU_FLOPS + 1) * elements,
        special_ops=(5 + GELU_SPECIALS) * elements,
    )


def make_case(
    batch: int, time: int, width: int, blocks: int, taps: int = 4, dtype: str = "float32", **facts: Any
) -> BenchCase:
    """A case from sizes. K taps, H blocks of width n = D / H; N is the batch, or ``rows`` packed sequences."""
    facts.setdefault("op", "recurrent_block")
    sizes = (batch, time, width, taps, blocks, width // max(blocks, 1), facts.pop("rows", batch))
    dims = dict(zip(("B", "T", "D", "K", "H", "n", "N"), sizes, strict=True))
    return BenchCase(dims, dtype, tuple(facts.pop("flags", ())), **facts)
