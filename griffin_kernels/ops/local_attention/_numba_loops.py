"""The loops of the native variants: items, blocks of queries, tiles of keys, rows of scores between products.

What multiplies are compiled functions of each variant. tensor: the field of its keys or values.

sight: ``(f, seen, row)`` -> keys begin .. end - 1 of a tile that a row may see, none where end is lower.
tile_of: ``(f, span)`` -> keys in each tile of so many.
across: ``(data, f, seen, a, step, tensor, out)``, out [rows, width] = a [rows, d] @ tensor^T.
down: ``(data, f, seen, a, tensor, alpha, beta, out)``, out [rows, wide] = beta out + alpha a [rows, width] @ tensor.
transposed: ``(f, seen, a, b, step, alpha, out)``, out [width, wide] += alpha a [rows, width]^T @ b [rows, d].
weigh: as ``weigh`` of _numba_rows.py.
step: float32 numbers from row to row of queries. alpha: only where the variant ``scales``, see _numba_attention.py.
beta: 0 where out is 0 anyway, else 1.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops._native import take
from griffin_kernels.ops.local_attention import _numba_fields as fields
from griffin_kernels.ops.local_attention import _numba_rows as vectors
from griffin_kernels.ops.local_attention._numba_fields import AT, fields_of, floats, rounded_up

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, *vectors.FILES)
"""Sources that the loops are made from, besides _native.py."""


class Seen(NamedTuple):
    """A block and a tile of keys."""

    first: Any  # the first key that each query sees
    row: int  # of B * Hkv
    rows: int
    queries: int
    batch: int
    start: int  # the first query
    begin: int  # the first key
    width: int  # keys


class Block(NamedTuple):
    """A block of queries of the gradient."""

    row: int  # of B * Hkv
    batch: int
    head: int
    start: int  # the first query
    queries: int
    base: int  # the first key of the part's shares
    share: int  # where they begin, in bytes from that of the first item


@_njit
def gradient_step(f: Any) -> int:
    """float32 numbers from row to row of the gradient's queries.

    Rows of a power of two would fall on few lines of the first-level cache.
    """
    step: int = f[AT.wide] + 16
    return step


def over_parts(block_gradient: Any) -> Any:
    """The compiled function ``(data) -> None`` of the gradient: a part of the queries is an item, block after block.

    block_gradient: ``(data, f, room, block)``, dq of the block's queries, and what they give to dk and dv added to the
    shares. room: of the thread; what lies there first, as large as a block's queries and dout, is zeros to begin with.
    """

    @_njit
    def gradient(data: Any) -> None:
        f = fields_of(data)
        block, time, unit, wide = f[AT.block], f[AT.time], f[AT.unit], f[AT.wide]
        earlier = f[AT.keys] - time
        room = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]
        # channels beyond d, and rows beyond a block's
        vectors.clear(floats(room, 0), 0, 2 * rounded_up(block * f[AT.group], f[AT.rows]) * gradient_step(f))
        item = take(data, 0)
        while item < f[AT.items]:
            row, piece, batch, head = fields.located(f, item)
            # the last parts may see the most keys: those first
            piece = f[AT.pieces] - 1 - piece
            part = piece * f[AT.part]
            base = max(0, earlier + part - (f[AT.window] - 1)) // unit * unit
            if f[AT.bases]:
                base = fields.longs(f[AT.bases], piece)[0]
            share = 4 * (row * f[AT.pieces] + piece) * f[AT.reach] * wide
            vectors.clear(floats(f[AT.dk] + share, 0), 0, f[AT.reach] * wide)
            vectors.clear(floats(f[AT.dv] + share, 0), 0, f[AT.reach] * wide)
            for start in range(part, min(part + f[AT.part], time), block):
                count = min(block, time - start)
                block_gradient(data, f, room, Block(row, batch, head, start, count, base, share))
            item = take(data, 0)

    return gradient


@_njit
def equal_tiles(f: Any, span: int) -> int:
    """Keys in each tile of ``span``, the last of which may have fewer; of no keys, none is visited."""
    span = max(span, 1)
    tiles = (span + f[AT.tile] - 1) // f[AT.tile]
    whole: int = rounded_up((span + tiles - 1) // tiles, vectors.LANES)
    return whole


def sight_of(block: int, panel: int) -> Any:
    """``sight`` where products are made of tiles of ``block`` rows and ``panel`` keys, from the beginning of one."""

    @_njit
    def sight(f: Any, seen: Seen, row: int) -> tuple[int, int]:
        group, start = f[AT.group], row // block * block
        end = min((start + block - 1) // group + 1, seen.queries)
        low = max(fields.first_of(seen.first, start // group, end) - seen.begin, 0)
        after = fields.after_of(f, seen.batch, seen.start + end - 1)
        return low // panel * panel, min(after - seen.begin, seen.width)

    return sight


def forward(across: Any, down: Any, sight: Any, tile_of: Any, weigh: Any = vectors.weigh) -> Any:
    """The compiled function ``(data) -> None`` of local_attention."""

    @_njit
    def attend(data: Any) -> None:
        """out and lse; a block is an item."""
        f = fields_of(data)
        block, time, group, d, pitch, wide = f[AT.block], f[AT.time], f[AT.group], f[AT.d], f[AT.pitch], f[AT.wide]
        most, pairs = rounded_up(block * group, f[AT.rows]), f[AT.pairs]
        factor = floats(f[AT.factors], 0)[0]
        step = wide // 2 if pairs else d
        queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, step]
        weighted = queries + 4 * most * step  # [rows, wide]
        scores = weighted + 4 * most * wide  # [rows, pitch]
        weights = scores + 4 * most * pitch if pairs else scores  # [rows, pitch]
        largest = floats(weights + 4 * most * pitch, 0)  # [rows]
        total = floats(weights + 4 * most * pitch, most)  # [rows]
        item = take(data, 0)
        while item < f[AT.items]:
            row, piece, batch, head = fields.located(f, item)
            start = piece * block
            count = min(block, time - start)
            rows, high = count * group, fields.after_of(f, batch, start + count - 1)
            for r in range(rows):
                index, place = fields.at(f, AT.q, batch, start + r // group, head + r % group), queries + 4 * r * step
                if pairs:
                    vectors.copy_row(f[AT.q], index, place, d, wide)
                else:
                    vectors.read_row(data, f[AT.q], index, place, factor, d)
                largest[r], total[r] = _f32(vectors.HIDDEN), _f32(0)
            vectors.clear(floats(queries, 0), rows * step, rounded_up(rows, f[AT.rows]) * step)
            vectors.clear(floats(weighted, 0), 0, rounded_up(rows, f[AT.rows]) * wide)
            first = fields.firsts(f, batch, start)
            low = fields.first_of(first, 0, count) // f[AT.unit] * f[AT.unit]
            tile = tile_of(f, high - low)
            for begin in range(low, high, tile):
                seen = Seen(first, row, rows, count, batch, start, begin, min(tile, high - begin))
                across(data, f, seen, queries, step, AT.k, scores)
                for r in range(rows):
                    near, far = sight(f, seen, r)
                    if near < far:
                        t, place, near_key = r // group, r * pitch + near, begin + near
                        out, since = floats(weighted, r * wide), first[t] - near_key
                        until, count_near = fields.after_of(f, batch, start + t) - near_key, far - near
                        weigh(data, f, scores, weights, place, since, until, count_near, r, largest, total, out)
                down(data, f, seen, weights, AT.v, _f32(1), _f32(begin > low), weighted)
            for r in range(rows):
                t, values = start + r // group, floats(weighted, r * wide)
                blind = fields.after_of(f, batch, t) <= first[t - start]
                vectors.write_weighted(data, f, batch, t, head + r % group, values, largest[r], total[r], blind)
            item = take(data, 0)

    return attend


def backward(across: Any, down: Any, transposed: Any, sight: Any, tile_of: Any) -> Any:
    """The compiled function ``(data) -> None`` of the gradient, with products of float32."""

    @_njit
    def block_gradient(data: Any, f: Any, room: int, block: Block) -> None:
        """See over_parts."""
        group, unit, pitch, wide = f[AT.group], f[AT.unit], f[AT.pitch], f[AT.wide]
        most = rounded_up(f[AT.block] * group, f[AT.rows])
        row, batch, head, start, count = block.row, block.batch, block.head, block.start, block.queries
        factors, wide_data = floats(f[AT.factors], 0), floats(room, 0)
        step, queries = gradient_step(f), room  # [rows, step]
        upstream = queries + 4 * most * step  # [rows, step]
        slopes = upstream + 4 * most * step  # [rows, wide]
        scores = slopes + 4 * most * wide  # [rows, pitch]
        changes = scores + 4 * most * pitch  # [rows, pitch]
        delta = floats(changes + 4 * most * pitch, 0)  # [rows]
        lse = floats(changes + 4 * most * pitch, most)  # [rows]
        rows, high = count * group, fields.after_of(f, batch, start + count - 1)
        for r in range(rows):
            t, g, place = start + r // group, head + r % group, 4 * r * step
            delta[r], lse[r] = vectors.read_gradient(data, f, batch, t, g, upstream + place, queries + place)
        vectors.clear(floats(slopes, 0), 0, most * wide)
        first = fields.firsts(f, batch, start)
        low = fields.first_of(first, 0, count) // unit * unit
        tile = tile_of(f, high - low)
        for begin in range(low, high, tile):
            width = min(tile, high - begin)
            seen = Seen(first, row, rows, count, batch, start, begin, width)
            every = rounded_up(width, unit)
            across(wide_data, f, seen, queries, step, AT.k, scores)
            across(wide_data, f, seen, upstream, step, AT.v, changes)
            for r in range(rows):
                (near, far), t = sight(f, seen, r), r // group
                if near < far:
                    p, ds = floats(scores, r * pitch + near), floats(changes, r * pitch + near)
                    vectors.slope(f, p, ds, lse[r], delta[r], far - near)
                since, until = first[t] - begin, fields.after_of(f, batch, start + t) - begin
                vectors.clear_unseen(floats(scores, r * pitch), since, until, every)
                vectors.clear_unseen(floats(changes, r * pitch), since, until, every)
            down(wide_data, f, seen, changes, AT.k_down, factors[2], _f32(begin > low), slopes)
            share = block.share + 4 * (begin - block.base) * wide
            transposed(f, seen, changes, queries, step, factors[3], f[AT.dk] + share)
            transposed(f, seen, scores, upstream, step, _f32(1), f[AT.dv] + share)
        for r in range(rows):
            vectors.write_dq(data, f, batch, start + r // group, head + r % group, floats(slopes, r * wide))

    return over_parts(block_gradient)
