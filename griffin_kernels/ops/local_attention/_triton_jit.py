"""Device code of the windowed flash kernels: rows of a tile, what they see, tiles of keys, scores.

Query heads that share a key head are packed into the rows of a tile: row r of [T * G] is query r // G, head r % G of
the G = Hq / Hkv heads, so a tile of keys is loaded once for all of them and a tile may begin within a query.
Isolation: weights of keys that a row of a masked tile does not see are 0, and so are products with values, unless those
are not finite. That a program sees at its end by its sums, and leaves word in ``broken``. A second launch of the same
kernel, AGAIN, does such a program's work with zeros for what is not finite. Sums of rows that see none of it then are
as they should be, bit for bit; where a row does see some, NaN is written. Every other program returns at once.
Strides are constants where they follow from the model, see ops/_triton/strides.py; bases are 64-bit, offsets within a
tile 32-bit where they are constants that fit. T * G and S fit in 32 bits: tensors that large fit in no memory.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.strides import far, reach

HIDDEN = tl.constexpr(-1e30)
"""Score of a key that a query does not see. Finite, times any scale too: a row may see none of a tile's keys."""

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["T", "S", "count", "steps", "window"])
def first_keys(
    segment_pos,
    cu_seqlens,
    first,
    T,
    S,
    count,
    steps,
    window,
    pos_batch,
    POS_STEP,
    BLOCK: tl.constexpr,
):
    """The first key that each query sees: first [B or 1, T] int32. Grid: (ceil(T / block), B or 1).

    count: sequences in cu_seqlens [count + 1]. steps: halvings that find one of them.
    """
    row = tl.cast(tl.program_id(1), tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = query < T
    own = query + (S - T)
    start = tl.maximum(own - window + 1, 0)
    if segment_pos is not None:
        place = tl.load(segment_pos + row * pos_batch + query.to(tl.int64) * far(POS_STEP), mask=inside, other=0)
        # a position below 0 counts as 0; one beyond the keys is that of a document whose beginning is not there
        place = tl.minimum(tl.maximum(place, 0), own.to(tl.int64))
        start = tl.maximum(start, own - place.to(tl.int32))
    if cu_seqlens is not None:
        below = tl.zeros((BLOCK,), dtype=tl.int32)  # the last sequence known to begin at or before the query
        above = below + count
        for _ in range(steps):
            middle = (below + above) // 2
            later = tl.load(cu_seqlens + middle) > query
            below = tl.where(later, below, middle)
            above = tl.where(later, middle, above)
        start = tl.maximum(start, tl.load(cu_seqlens + below))
    tl.store(first + row * T + query, start, mask=inside)


@triton.jit
def offsets(rows, columns, STEP, CHANNEL: tl.constexpr, REACH: tl.constexpr, D: tl.constexpr):
    """Offsets [rows, columns] in elements; 64-bit only where rows up to REACH and D columns need it."""
    if REACH * reach(STEP) + D * CHANNEL >= 2**31:
        rows = rows.to(tl.int64)
        columns = columns.to(tl.int64)
    return rows[:, None] * STEP + columns[None, :] * CHANNEL


@triton.jit
def load_keys(
    pointer,
    keys,
    end,
    columns,
    STEP,
    CHANNEL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows ``keys`` [block_n] of a tile as [block_n, block_d]; zeros from row ``end`` on and beyond D channels."""
    inside = keys[:, None] < end
    if D != BLOCK_D:
        inside = inside & (columns[None, :] < D)
    return tl.load(pointer + offsets(keys, columns, STEP, CHANNEL, BLOCK_N, D), mask=inside, other=0.0)


@triton.jit
def row_offsets(
    rows,
    origin,
    columns,
    T,
    G: tl.constexpr,
    STEP,
    HEAD,
    CHANNEL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Offsets [block_m, block_d] of packed rows from query ``origin``, head 0; rows past the end repeat query T - 1."""
    query = tl.minimum(rows // G, T - 1) - origin
    head = rows % G
    if (BLOCK_M // G + 1) * reach(STEP) + G * reach(HEAD) + D * CHANNEL >= 2**31:
        query = query.to(tl.int64)
        head = head.to(tl.int64)
        columns = columns.to(tl.int64)
    return (query * STEP + head * HEAD)[:, None] + columns[None, :] * CHANNEL


@triton.jit
def load_rows(
    pointer,
    rows,
    origin,
    columns,
    T,
    G: tl.constexpr,
    STEP,
    HEAD,
    CHANNEL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Packed rows [block_m] of a tensor [.., T, .., G, D] at ``pointer`` (query ``origin``) as [block_m, block_d]."""
    where = pointer + row_offsets(rows, origin, columns, T, G, STEP, HEAD, CHANNEL, D, BLOCK_M)
    if D == BLOCK_D:
        tile = tl.load(where)
    else:
        tile = tl.load(where, mask=columns[None, :] < D, other=0.0)
    return tile


@triton.jit
def sight(first, rows, T, S, window, G: tl.constexpr):
    """(own, reach) of packed rows: the last and the first key that each row's query sees, int32.

    first: [T] of ``first_keys`` for this batch entry, or None where there are no documents.
    """
    query = tl.minimum(rows // G, T - 1)
    own = query + (S - T)
    if first is None:
        reach = tl.maximum(own - window + 1, 0)
    else:
        reach = tl.load(first + query)
    return own, reach


@triton.jit
def span(first, reach, row, T, S, window, G: tl.constexpr, BLOCK_M: tl.constexpr):
    """(low, full_low, full_high, high): some row of the tile from ``row`` on sees keys low .. high - 1, and every row
    sees keys full_low .. full_high - 1."""
    begin = row // G + (S - T)
    end = tl.minimum((row + BLOCK_M - 1) // G, T - 1) + (S - T)
    if first is None:
        low = tl.maximum(begin - window + 1, 0)
        full_low = tl.maximum(end - window + 1, 0)
    else:
        low = tl.min(reach, axis=0)
        full_low = tl.max(reach, axis=0)
    return low, full_low, begin + 1, end + 1


@triton.jit
def sound(x):
    """Which elements are finite."""
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def cleared(tile):
    """The tile with zeros for what is not finite."""
    return tl.where(sound(tile), tile, tl.zeros_like(tile))


@triton.jit
def report(broken, summed, ROWS: tl.constexpr):
    """Leave 1 in this program's places of ``broken`` for rows of its sums that are not all finite, else 0.

    summed: [rows, channels]. The rows are left apart: on sm_100 Triton's compiler fails to reduce sums to a scalar.
    """
    # 0 times anything else is NaN, and so is every sum of that
    zero = tl.sum(summed * 0.0, axis=1)
    tl.store(broken + tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS), (zero != zero).to(tl.int8))


@triton.jit
def intact(broken, ROWS: tl.constexpr):
    """Whether the first launch of this program found all of its sums finite."""
    rows = tl.load(broken + tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS))
    return tl.max(rows.to(tl.int32), axis=0) == 0


@triton.jit
def tanh(x):
    """By one exp2 and one division; infinite powers give 1. Absolute error of a few 2**-24."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)
