"""What one temporal_conv1d_extend costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

import dataclasses

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru_extend.cost import index_bytes, rows_kept
from griffin_kernels.ops.temporal_conv1d import cost as conv

FLAGS = tuple(flag for flag in conv.FLAGS if flag != "residual")
"""Those of temporal_conv1d but for one."""


def cost(case: Case) -> Cost:
    """temporal_conv1d, the windows that sequences start from, those kept, and the indices of both."""
    base, window = conv.cost(case), (case["K"] - 1) * case["D"] * case.bytes_per_element()
    return dataclasses.replace(
        base,
        bytes_read=base.bytes_read + case["N"] * window + index_bytes(case),
        bytes_written=base.bytes_written + (rows_kept(case) - case["N"]) * window,  # in place of the new states
    )


def make_case(
    batch: int,
    time: int,
    width: int,
    taps: int = 4,
    dtype: str = "float32",
    flags: tuple[str, ...] = (),
    *,
    rows: int | None = None,
    pool: int | None = None,
    **facts: object,
) -> BenchCase:
    """A case from sizes: ``rows`` sequences, the batch unless they are packed; ``pool`` windows, one each if None."""
    count = batch if rows is None else rows
    sizes = (batch, time, width, taps, count, count if pool is None else pool)
    dims = dict(zip(("B", "T", "D", "K", "N", "P"), sizes, strict=True))
    return BenchCase(dims, dtype, tuple(flags), op="temporal_conv1d_extend", **facts)  # type: ignore[arg-type]
