"""What one rg_lru_gated costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost
from griffin_kernels.ops.rg_lru.cost import index_bytes


def cost(case: Case) -> Cost:
    """Read x and both gates' pre-activations, write y: four streams; some eight operations per element."""
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    # log a 1; 2 log a 1; negation 1; multiplier times i times x 2; multiply-add 2
    # sigmoid twice, exp, expm1, sqrt
    return Cost(
        bytes_read=(3 * elements + case["D"]) * size + index_bytes(case),
        bytes_written=elements * size,
        vector_flops=7 * elements,
        special_ops=5 * elements,
    )


def make_case(
    batch: int,
    time: int,
    width: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    op: str = "rg_lru_gated",
    **facts: object,
) -> BenchCase:
    """A case from sizes. N, the rows of h0, is the batch or the number of packed sequences."""
    dims = (("B", batch), ("T", time), ("D", width), ("N", batch if rows is None else rows))
    return BenchCase(dict(dims), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
