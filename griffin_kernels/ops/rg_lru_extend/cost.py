"""What one rg_lru_extend costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

import dataclasses

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru import cost as lru

FLAGS = lru.FLAGS
"""Those of rg_lru."""

CHECKPOINT = 5
"""Steps from one kept state to the next, in cases with ``checkpoints``."""

STATE_BYTES = 4
"""States are float32, but for float64 data."""


def cost(case: Case) -> Cost:
    """rg_lru, the states that sequences start from, those kept, and the indices of both."""
    return with_states(lru.cost(case), case, state_bytes(case))


def with_states(base: Cost, case: Case, row: int) -> Cost:
    """The cost of a call with a pool: rows of ``row`` bytes read and kept, and the indices of both, beside ``base``."""
    return dataclasses.replace(
        base,
        bytes_read=base.bytes_read + case["N"] * row + index_bytes(case),
        bytes_written=base.bytes_written + rows_kept(case) * row,
    )


def state_bytes(case: Case) -> int:
    """Bytes of a recurrence's state."""
    return max(case.bytes_per_element(), STATE_BYTES) * case["D"]


def index_bytes(case: Case) -> int:
    """Bytes of slots and keep."""
    return 8 * (case["N"] + case["B"] * case["T"])


def rows_kept(case: Case) -> int:
    """States that a case's call writes: those of a sequence's last step, or as many as its data say."""
    steps = case["B"] * case["T"]
    if "every_token" in case.data:
        return steps
    return max(case["N"], steps // CHECKPOINT) if "checkpoints" in case.data else case["N"]


def make_case(
    batch: int,
    time: int,
    width: int,
    blocks: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    pool: int | None = None,
    **facts: object,
) -> BenchCase:
    """A case from sizes: ``rows`` sequences, the batch unless they are packed; ``pool`` states, one each if None."""
    count = batch if rows is None else rows
    sizes = (batch, time, width, blocks, width // max(blocks, 1), count, count if pool is None else pool)
    dims = dict(zip(("B", "T", "D", "H", "n", "N", "P"), sizes, strict=True))
    return BenchCase(dims, dtype, tuple(flags), op="rg_lru_extend", **facts)  # type: ignore[arg-type]
