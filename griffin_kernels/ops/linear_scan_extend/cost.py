"""What one linear_scan_extend costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.linear_scan import cost as scan
from griffin_kernels.ops.rg_lru_extend.cost import state_bytes, with_states

MINOR_FLAGS = tuple(flag for flag in scan.MINOR_FLAGS if flag != "a_prod")
"""Those of linear_scan, whose product of the gates is not given here."""

FLAGS = ("reset", "packed", *MINOR_FLAGS)
"""Properties of a call that look-up matches."""


def cost(case: Case) -> Cost:
    """linear_scan, the states that sequences start from, those kept, and the indices of both."""
    return with_states(scan.cost(case), case, state_bytes(case))


def make_case(
    batch: int,
    time: int,
    width: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    pool: int | None = None,
    **facts: object,
) -> BenchCase:
    """A case from sizes: ``rows`` sequences, the batch unless they are packed; ``pool`` states, one each if None."""
    count = batch if rows is None else rows
    sizes = (batch, time, width, count, count if pool is None else pool)
    dims = dict(zip(("B", "T", "D", "N", "P"), sizes, strict=True))
    return BenchCase(dims, dtype, tuple(flags), op="linear_scan_extend", **facts)  # type: ignore[arg-type]
