"""What one block_diagonal_scan costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost


def cost(case: Case) -> Cost:
    """Read x and n elements of a for each of them, write h; n multiply-adds per element.

    A product of one small matrix and one vector is no work for a matrix unit, so they count as vector operations.
    """
    elements = case["B"] * case["T"] * case["D"]
    size = case.bytes_per_element()
    return Cost(
        bytes_read=(case["n"] + 1) * elements * size,
        bytes_written=elements * size,
        vector_flops=2 * case["n"] * elements,
    )


def make_case(
    batch: int,
    time: int,
    blocks: int,
    size: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    op: str = "block_diagonal_scan",
    **facts: object,
) -> BenchCase:
    """A case from sizes: H blocks of n = ``size``, D = H n. N, the rows of h0, is the batch or the sequences."""
    sizes = (batch, time, blocks * size, blocks, size, batch if rows is None else rows)
    return BenchCase(dict(zip(("B", "T", "D", "H", "n", "N"), sizes, strict=True)), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
