"""What one linear_scan costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost

MINOR_FLAGS = ("log", "convex", "constant", "wide", "a_prod")
"""Properties of a call that hardly change which kernel is right.

log: a holds logarithms. convex: x is multiplied by 1 - a. constant: a does not change in time. wide: a has the
accumulator's dtype beside narrower data. a_prod: the product of the gates is asked for.
"""

FLAGS = ("reset", "packed", "reverse", *MINOR_FLAGS)
"""Properties of a call that look-up matches. h0 is not one: it costs one row."""


def gates(case: Case) -> tuple[int, int]:
    """(elements of a, bytes of one)."""
    wide = max(4, case.bytes_per_element()) if "wide" in case.flags else case.bytes_per_element()
    return case["D"] if "constant" in case.flags else case["B"] * case["T"] * case["D"], wide


def special_ops(case: Case) -> int:
    """exp of every logarithm, and expm1 for the convex form."""
    return gates(case)[0] * (1 + ("convex" in case.flags)) if "log" in case.flags else 0


def cost(case: Case) -> Cost:
    """Read x and a, write h; one multiply-add per element, and what the options add."""
    elements = case["B"] * case["T"] * case["D"]
    count, size = gates(case)
    data = elements * case.bytes_per_element()
    return Cost(
        bytes_read=data + count * size,
        bytes_written=data,
        vector_flops=elements * (2 + 2 * ("convex" in case.flags) + ("a_prod" in case.flags)),
        special_ops=special_ops(case),
    )


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
