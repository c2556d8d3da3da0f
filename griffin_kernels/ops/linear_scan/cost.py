"""What one linear_scan costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost

FLAGS = ("reset", "packed", "reverse")
"""Properties of a call that look-up matches exactly. h0 is not one: it costs one row."""


def cost(case: Case) -> Cost:
    """Read x and a, write h; one multiply-add per element."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(bytes_read=2 * elements * size, bytes_written=elements * size, vector_flops=2 * elements)


def make_case(
    batch: int,
    time: int,
    width: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    op: str = "linear_scan",
    **facts: object,
) -> BenchCase:
    """A case from sizes. N, the rows of h0, is the batch, or the number of packed sequences."""
    dims = (("B", batch), ("T", time), ("D", width), ("N", batch if rows is None else rows))
    return BenchCase(dict(dims), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
