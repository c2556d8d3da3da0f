"""What one recurrent_block_step costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.nearness import Nearness
from griffin_kernels.ops.rg_lru_step.cost import STATE_BYTES, weight_elements
from griffin_kernels.ops.temporal_conv1d.cost import GELU_FLOPS as GELU_FLOPS
from griffin_kernels.ops.temporal_conv1d.cost import GELU_SPECIALS as GELU_SPECIALS
from griffin_kernels.ops.temporal_conv1d_step.cost import index_bytes

FLAGS: tuple[str, ...] = ()
"""Positions and slots are read, but change nothing that look-up should tell apart."""


NEAR = Nearness(exact_dims=("K",), free_dims=("n", "P"))
"""What look-up compares."""


def cost(case: Case) -> Cost:
    """Read x, y, all weights and both states, write out and the states."""
    channels = case["B"] * case["D"]
    size = case.bytes_per_element()
    state = max(size, STATE_BYTES) * channels
    taps = (case["K"] - 1) * channels * size
    return Cost(
        bytes_read=(2 * channels + weight_elements(case) + (case["K"] + 1) * case["D"]) * size
        + taps
        + state
        + index_bytes(case),
        bytes_written=channels * size + taps + state,
        tensor_flops=2 * 2 * channels * case["n"],
        vector_flops=(9 + 2 * case["K"] + GELU_FLOPS + 1) * channels,
        special_ops=(5 + GELU_SPECIALS) * channels,
    )


def make_case(
    batch: int, width: int, blocks: int, taps: int = 4, dtype: str = "float32", pool: int | None = None, **facts: Any
) -> BenchCase:
    """A case from sizes: K taps, H blocks of width n = D / H; P states, of which a batch of B works on B."""
    sizes = (batch, width, taps, blocks, width // max(blocks, 1), batch if pool is None else pool)
    dims = tuple(zip(("B", "D", "K", "H", "n", "P"), sizes, strict=True))
    return BenchCase(dict(dims), dtype, op="recurrent_block_step", **facts)
