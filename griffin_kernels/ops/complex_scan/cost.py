"""What one complex_scan costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.linear_scan import cost as plain


def cost(case: Case) -> Cost:
    """Read x and a, write h, two reals for each number; one complex multiply-add, four real ones, per number."""
    numbers = case["B"] * case["T"] * case["D"]
    size = 2 * case.bytes_per_element()
    return Cost(bytes_read=2 * numbers * size, bytes_written=numbers * size, vector_flops=8 * numbers)


def make_case(
    batch: int,
    time: int,
    width: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    op: str = "complex_scan",
    **facts: object,
) -> BenchCase:
    """A case from sizes: D = ``width`` complex channels. N, the rows of h0, is the batch or the sequences."""
    return plain.make_case(batch, time, width, dtype, flags, rows=rows, op=op, **facts)
