"""What one rg_lru costs, from sizes alone. Needs no PyTorch."""

from __future__ import annotations

from griffin_kernels.case import BenchCase, Case, Cost

FLAGS = ("segmented", "packed")
"""Properties of a call that look-up matches exactly: segment_pos is given, cu_seqlens is given."""


def cost(case: Case) -> Cost:
    """Read x and both gates' weights, write y; two gate products, then some ten operations per element."""
    elements = case["B"] * case["T"] * case["D"]
    weights = 2 * case["H"] * case["n"] * (case["n"] + 1) + case["D"]
    size = case.bytes_per_element()
    # biases 2; log a 1; 2 log a 1; negation 1; multiplier times i times x 2; multiply-add 2
    # sigmoid twice, exp, expm1, sqrt
    return Cost(
        bytes_read=(elements + weights) * size + index_bytes(case),
        bytes_written=elements * size,
        tensor_flops=2 * 2 * elements * case["n"],
        vector_flops=9 * elements,
        special_ops=5 * elements,
    )


def index_bytes(case: Case) -> int:
    """Bytes of segment_pos and cu_seqlens."""
    positions = 8 * case["B"] * case["T"] if "segmented" in case.flags else 0
    return positions + (4 * (case["N"] + 1) if "packed" in case.flags else 0)


def make_case(
    batch: int,
    time: int,
    width: int,
    blocks: int,
    dtype: str = "float32",
    flags: list[str] | tuple[str, ...] = (),
    *,
    rows: int | None = None,
    op: str = "rg_lru",
    **facts: object,
) -> BenchCase:
    """A case from sizes. H blocks of width n = D / H; N, the rows of h0, is the batch or the number of sequences."""
    sizes = (batch, time, width, blocks, width // max(blocks, 1), batch if rows is None else rows)
    return BenchCase(dict(zip(("B", "T", "D", "H", "n", "N"), sizes, strict=True)), dtype, tuple(flags), op=op, **facts)  # type: ignore[arg-type]
