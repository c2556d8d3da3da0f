"""What one recurrent_block_extend costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from typing import Any

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.recurrent_block import cost as block
from griffin_kernels.ops.rg_lru_extend.cost import STATE_BYTES, with_states

FLAGS = block.FLAGS
"""Those of recurrent_block."""


def cost(case: Case) -> Cost:
    """recurrent_block, the states and windows that sequences start from, those kept, and the indices of both."""
    return with_states(block.cost(case), case, row_bytes(case))


def row_bytes(case: Case) -> int:
    """Bytes of a row of both pools: a state, and the last K-1 inputs."""
    size = case.bytes_per_element()
    return (max(size, STATE_BYTES) + (case["K"] - 1) * size) * case["D"]


def make_case(
    batch: int,
    time: int,
    width: int,
    blocks: int,
    taps: int = 4,
    dtype: str = "float32",
    *,
    rows: int | None = None,
    pool: int | None = None,
    **facts: Any,
) -> BenchCase:
    """A case from sizes: ``rows`` sequences, the batch unless they are packed; a ``pool`` of rows, one each if None."""
    count = batch if rows is None else rows
    sizes = (batch, time, width, taps, blocks, width // max(blocks, 1), count, count if pool is None else pool)
    dims = dict(zip(("B", "T", "D", "K", "H", "n", "N", "P"), sizes, strict=True))
    return BenchCase(dims, dtype, tuple(facts.pop("flags", ())), op="recurrent_block_extend", **facts)
