"""Device code of the windowed flash kernels: rows of a tile, what they see, tiles of keys, scores, online softmax.

Query heads that share a key head are packed into the rows of a tile: row r of [T * G] is query r // G, head r % G of
the G = Hq / Hkv heads, so a tile of keys is loaded once for all of them and a tile may begin within a query.
Isolation: weights of keys that a row of a masked tile does not see are 0, and so are products with values, unless those
are not finite. That a program sees at its end by its sums, and leaves word in ``broken``. A second launch of the same
kernel, AGAIN, does such a program's work with zeros for what is not finite. Sums of rows that see none of it then are
as they should be, bit for bit; where a row does see some, NaN is written. Every other program returns at once.
Softmax in powers of two: with c = scale log2(e), p = 2^(c q.k - m), where m is the largest exponent seen so far.
Strides are constants where they follow from the model, see ops/_triton/strides.py; bases are 64-bit, offsets within a
tile 32-bit where they are constants that fit. T * G and S fit in 32 bits: tensors that large fit in no memory.
A bundle with constants or None is passed on as it is: what is assigned to a name or returned is a constant no more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.strides import far, reach
from griffin_kernels.ops.local_attention._triton_bounds import load_first, load_last

HIDDEN = tl.constexpr(-1e30)
"""Score of a key that a query does not see. Finite, times any scale too: a row may see none of a tile's keys."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Heads(NamedTuple):
    """[B,T,H,d], [B,H,d] without ``step`` or [B,H,T] without ``channel``: the tensor and its strides in elements.

    In a kernel ``at`` is a pointer into the tensor.
    """

    at: Any
    batch: Any
    step: Any
    head: Any
    channel: Any


class Entries(NamedTuple):
    """[B], or [B or 1,T] contiguous along T: the tensor and its stride along the batch, 0 where there is one entry."""

    at: Any
    batch: Any


class Score(NamedTuple):
    """From raw scores q.k to exponents of 2. factor: scale log2(e), or scale / softcap where there is one.

    NEGATIVE: ``factor`` is that of -q.
    """

    scale: Any
    factor: Any
    softcap: Any
    NEGATIVE: Any


class Sizes(NamedTuple):
    """Query heads of a key head, key heads, channels; a tile's rows, its keys, and its channels, a power of two.

    PARTS: programs that share the keys, or the rows, of a tile.
    """

    G: int
    HKV: int
    D: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    PARTS: int = 1


class Parts(NamedTuple):
    """Sums of weighted values [.., D], largest exponents and sums of weights, float32, of each part of the keys.

    Of a whole there is but its output, in place of ``sums``.
    """

    sums: Any
    largest: Any
    total: Any


class View(NamedTuple):
    """What bounds the keys that queries see, besides documents."""

    T: Any
    S: Any
    window: Any


class Sight(NamedTuple):
    """The last key and the first that each packed row sees, [block_m] int32. The last: ``own`` but for ``right``."""

    own: Any
    reach: Any


class Span(NamedTuple):
    """Tile rows low .. high - 1 are visited; those within full_low .. full_high - 1 need no mask."""

    low: Any
    full_low: Any
    full_high: Any
    high: Any


class Lane(NamedTuple):
    """A batch entry and a key head, int64."""

    batch: Any
    shared: Any


class PackedRows(NamedTuple):
    """The first of a program's packed rows, all of them [block_m], and channels [block_d]."""

    row: Any
    rows: Any
    columns: Any


class Work(NamedTuple):
    """What a program that owns packed rows works on."""

    lane: Any
    tile: Any
    view: Any
    sight: Any
    span: Any


@bundling
def lane_of(place, SIZES: tl.constexpr):
    """The lane of program ``place`` of batch entries times key heads, these the faster."""
    return Lane(tl.cast(place // SIZES.HKV, tl.int64), tl.cast(place % SIZES.HKV, tl.int64))


@bundling
def tile_of(row, SIZES: tl.constexpr):
    """The tile from packed row ``row`` on."""
    return PackedRows(row, row + tl.arange(0, SIZES.BLOCK_M), tl.arange(0, SIZES.BLOCK_D))


@triton.jit
def of_head(tensor, batch, head):
    """The pointer to a batch entry and head of [B,T,H,d], [B,H,d] or [B,H,T]."""
    return tensor.at + (batch * tensor.batch + head * far(tensor.head))


@triton.jit
def in_channels(inside, columns, SIZES: tl.constexpr):
    """``inside`` [rows, 1] and within D channels: [rows, block_d], or as it was where a tile is of all channels."""
    if SIZES.D != SIZES.BLOCK_D:
        inside = inside & (columns[None, :] < SIZES.D)
    return inside


@triton.jit
def load_keys(tensor, batch, head, start, inside, SIZES: tl.constexpr):
    """Keys or values from ``start`` on as [block_n, block_d]; zeros where not ``inside`` [block_n] and beyond D."""
    columns = tl.arange(0, SIZES.BLOCK_D)
    base = of_head(tensor, batch, head) + tl.cast(start, tl.int64) * far(tensor.step)
    rows = tl.arange(0, SIZES.BLOCK_N)
    channels = columns
    if SIZES.BLOCK_N * reach(tensor.step) + SIZES.D * tensor.channel >= 2**31:  # only then offsets are 64-bit
        rows = rows.to(tl.int64)
        channels = channels.to(tl.int64)
    where = base + (rows[:, None] * far(tensor.step) + channels[None, :] * tensor.channel)
    return tl.load(where, mask=in_channels(inside[:, None], columns, SIZES), other=0.0)


@triton.jit
def load_keys_before(tensor, lane, start, end, SIZES: tl.constexpr):
    """A lane's keys or values from ``start`` on, zeros from ``end`` on; see ``load_keys``."""
    return load_keys(tensor, lane.batch, lane.shared, start, tl.arange(0, SIZES.BLOCK_N) < end - start, SIZES)


@triton.jit
def row_pointers(tensor, lane, tile, T, SIZES: tl.constexpr):
    """Pointers [block_m, block_d] to a lane's rows of a tile; rows past the end repeat query T - 1."""
    origin = tile.row // SIZES.G
    query = tl.minimum(tile.rows // SIZES.G, T - 1) - origin
    head = tile.rows % SIZES.G
    columns = tile.columns
    QUERIES: tl.constexpr = SIZES.BLOCK_M // SIZES.G + 1
    if QUERIES * reach(tensor.step) + SIZES.G * reach(tensor.head) + SIZES.D * tensor.channel >= 2**31:
        query = query.to(tl.int64)
        head = head.to(tl.int64)
        columns = columns.to(tl.int64)
    offset = (query * far(tensor.step) + head * far(tensor.head))[:, None] + columns[None, :] * tensor.channel
    base = of_head(tensor, lane.batch, lane.shared * SIZES.G) + tl.cast(origin, tl.int64) * far(tensor.step)
    return base + offset


@triton.jit
def load_rows(tensor, lane, tile, T, SIZES: tl.constexpr):
    """A lane's rows of a tile [block_m, block_d], zeros beyond D channels; see ``row_pointers``."""
    where = row_pointers(tensor, lane, tile, T, SIZES)
    if SIZES.D == SIZES.BLOCK_D:
        rows = tl.load(where)
    else:
        rows = tl.load(where, mask=tile.columns[None, :] < SIZES.D, other=0.0)
    return rows


@triton.jit
def inside_of(tile, T, SIZES: tl.constexpr):
    """bool [block_m, block_d] or [block_m, 1]: which elements of the tile there are."""
    return in_channels((tile.rows < T * SIZES.G)[:, None], tile.columns, SIZES)


@triton.jit
def store_rows(out, lane, tile, value, T, SIZES: tl.constexpr, where=True):
    """The tile's rows of a contiguous [B,T,Hq,D], as far as ``where``."""
    STEP: tl.constexpr = SIZES.HKV * SIZES.G * SIZES.D
    inside = inside_of(tile, T, SIZES) & where
    pointers = row_pointers(Heads(out, tl.cast(T, tl.int64) * STEP, STEP, SIZES.D, 1), lane, tile, T, SIZES)
    tl.store(pointers, value, mask=inside)


@triton.jit
def store_lse(lse, lane, tile, largest, total, T, SIZES: tl.constexpr):
    """lse [B,Hq,T] of the tile's rows from their largest exponents of 2 and sums of weights, [block_m]."""
    lse += (lane.batch * SIZES.HKV + lane.shared) * tl.cast(T, tl.int64) * SIZES.G
    where = (tile.rows % SIZES.G).to(tl.int64) * T + tile.rows // SIZES.G
    tl.store(lse + where, (largest + tl.log2(total)) * LN2, mask=tile.rows < T * SIZES.G)


@bundling
def sight_of(first, lane, view, tile, SIZES: tl.constexpr):
    """The sight of a tile's rows."""
    query = tl.minimum(tile.rows // SIZES.G, view.T - 1)
    own = query + (view.S - view.T)
    if first is None:
        start = tl.maximum(own - view.window + 1, 0)
    else:
        start = load_first(first, lane, query)
        if first.last is not None:
            own = load_last(first, lane, query)
    return Sight(own, start)


@bundling
def span_of(first, view, sight, tile, SIZES: tl.constexpr):
    """The span of keys: some row of a tile sees low .. high - 1, every row the full ones."""
    begin = tile.row // SIZES.G + (view.S - view.T)
    end = tl.minimum((tile.row + SIZES.BLOCK_M - 1) // SIZES.G, view.T - 1) + (view.S - view.T)
    if first is None:
        low = tl.maximum(begin - view.window + 1, 0)
        full_low = tl.maximum(end - view.window + 1, 0)
    else:
        low = tl.min(sight.reach, axis=0)
        full_low = tl.max(sight.reach, axis=0)
        if first.last is not None:
            begin = tl.min(sight.own, axis=0)
            end = tl.max(sight.own, axis=0)
    return Span(low, full_low, begin + 1, end + 1)


@bundling
def part_of(span, part, BLOCK: tl.constexpr, SIZES: tl.constexpr):
    """The span of one of PARTS that share a span in whole blocks."""
    low, high = span.low, span.high
    if SIZES.PARTS > 1:
        share = tl.cdiv(tl.maximum(high - low, 0), SIZES.PARTS * BLOCK) * BLOCK
        low += part * share
        high = tl.minimum(high, low + share)
    return Span(low, span.full_low, span.full_high, high)


@bundling
def work_of(first, T, S, window, batches, SIZES: tl.constexpr):
    """The work of a program of a grid of tiles of [T * G] * PARTS * B * Hkv, the last tiles first."""
    lanes = batches * SIZES.HKV
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // (lanes * SIZES.PARTS) * SIZES.BLOCK_M
    lane = lane_of(tl.program_id(0) % lanes, SIZES)
    tile = tile_of(row, SIZES)
    view = View(T, S, window)
    sight = sight_of(first, lane, view, tile, SIZES)
    span = span_of(first, view, sight, tile, SIZES)
    part = tl.program_id(0) // lanes % SIZES.PARTS
    return Work(lane, tile, view, sight, part_of(span, part, SIZES.BLOCK_N, SIZES))


@triton.jit
def visible(sight, start, BLOCK_N: tl.constexpr):
    """bool [block_m, block_n]: which rows see which keys from ``start`` on."""
    key = start + tl.arange(0, BLOCK_N)
    return (key[None, :] >= sight.reach[:, None]) & (key[None, :] <= sight.own[:, None])


@triton.jit
def unsound(seen, tile, count):
    """count [m, block_d] and how many elements of ``tile`` [n, block_d] m see that are not finite. seen: [m, n]."""
    return dot(seen.to(tile.dtype), tl.where(sound(tile), 0.0, 1.0).to(tile.dtype), count)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums [rows, columns], float32, to begin with."""
    return tl.zeros((ROWS, COLUMNS), dtype=tl.float32)


@triton.jit
def sound(x):
    """Which elements are finite."""
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def cleared(tile):
    """The tile with zeros for what is not finite."""
    return tl.where(sound(tile), tile, tl.zeros_like(tile))


@triton.jit
def report(broken, summed):
    """Leave 1 in this program's places of ``broken`` for rows of its sums that are not all finite, else 0.

    summed: [rows, channels]. The rows are left apart: on sm_100 Triton's compiler fails to reduce sums to a scalar.
    """
    # 0 times anything else is NaN, and so is every sum of that
    zero = tl.sum(summed * 0.0, axis=1)
    places = tl.cast(tl.program_id(0), tl.int64) * summed.shape[0] + tl.arange(0, summed.shape[0])
    tl.store(broken + places, (zero != zero).to(tl.int8))


@triton.jit
def intact(broken, ROWS: tl.constexpr):
    """Whether the first launch of this program found all of its sums finite."""
    rows = tl.load(broken + tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS))
    return tl.max(rows.to(tl.int32), axis=0) == 0


@triton.jit
def tanh(x):
    """By one exp2 and one division; infinite powers give 1. Absolute error of a few 2**-24."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)


@triton.jit
def attend(q, k, v, work, score, SIZES: tl.constexpr, AGAIN: tl.constexpr):
    """(sum [block_m, block_d], largest [block_m], total [block_m]), float32, of a program's rows and keys.

    A row that sees none of these keys has a ``largest`` that any other outweighs, or -inf without keys.
    """
    queries = load_rows(q, work.lane, work.tile, work.view.T, SIZES)
    if score.NEGATIVE:
        queries = -queries
    largest = tl.full(work.tile.rows.shape, float("-inf"), dtype=tl.float32)
    total = tl.zeros(work.tile.rows.shape, dtype=tl.float32)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for start in tl.range(work.span.low, work.span.high, SIZES.BLOCK_N):
        keys = load_keys_before(k, work.lane, start, work.span.high, SIZES)
        scores = dot(queries, tl.trans(keys))
        if score.softcap is not None:
            scores = tanh(scores * score.factor) * (score.softcap * LOG2E)
        if (start < work.span.full_low) | (start + SIZES.BLOCK_N > work.span.full_high):
            scores = tl.where(visible(work.sight, start, SIZES.BLOCK_N), scores, HIDDEN)
        if score.softcap is not None:
            top = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - top[:, None])
        else:
            top = tl.maximum(largest, tl.max(scores, axis=1) * score.factor)
            weights = tl.exp2(scores * score.factor - top[:, None])
        rescale = tl.exp2(largest - top)
        total = total * rescale + tl.sum(weights, axis=1)
        largest = top
        values = load_keys_before(v, work.lane, start, work.span.high, SIZES)
        if AGAIN:
            values = cleared(values)
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    return summed, largest, total


@triton.jit
def sees_unsound(v, work, SIZES: tl.constexpr):
    """bool [block_m, block_d]: whether a row sees a value that is not finite in a channel."""
    count = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for start in tl.range(work.span.low, work.span.high, SIZES.BLOCK_N):
        values = load_keys_before(v, work.lane, start, work.span.high, SIZES)
        count = unsound(visible(work.sight, start, SIZES.BLOCK_N), values, count)
    return count > 0
