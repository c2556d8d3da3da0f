"""The compiled code of numba.amx of local_attention_bwd: its five products on the matrix unit.

s = q k^T,  dout v^T        across tiles of keys and values, as the forward pass
dq += ds k                  down tiles of keys
dv += p^T dout, dk += ds^T q

p and ds are rounded to bfloat16 before their products. They leave their rows as pairs of these, whose words are then
turned to be rows of keys; dout and q are paired once per block. See _numba_matrix_unit.py and _numba_loops.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

import numba

from griffin_kernels.ops import _native_amx
from griffin_kernels.ops._native_amx import BLOCK, add_product, turn_tile
from griffin_kernels.ops.local_attention import _numba_fields as fields
from griffin_kernels.ops.local_attention import _numba_loops, _numba_matrix_unit, _numba_softmax
from griffin_kernels.ops.local_attention import _numba_rows as vectors
from griffin_kernels.ops.local_attention._numba_fields import AT, floats, rounded_up
from griffin_kernels.ops.local_attention._numba_loops import Block, Seen, equal_tiles
from griffin_kernels.ops.local_attention._numba_matrix_unit import across, down, pair_rows, sight

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, *_numba_matrix_unit.FILES)
"""Sources that the kernel is made from, besides _native.py."""


@_njit
def _slopes(f: Any, seen: Seen, scores: int, changes: int, slopes: int, lse: Any, delta: Any) -> None:
    """Weights and slopes of a tile's rows, two at a time; those beyond the block's see nothing."""
    pitch, group, factors = f[AT.pitch], f[AT.group], floats(f[AT.factors], 0)
    for r in range(0, rounded_up(seen.rows, BLOCK), 2):
        near, far = sight(f, seen, r)
        if near >= far:
            continue
        count, key = rounded_up(far - near, BLOCK), seen.begin + near
        # where a row sees nothing, it sees none of ``count``
        since_0, until_0, since_1, until_1 = count, 0, count, 0
        lse_0, lse_1, delta_0, delta_1 = _f32(0), _f32(0), _f32(0), _f32(0)
        if r < seen.rows:
            t = r // group
            since_0 = min(max(seen.first[t] - key, 0), count)
            until_0 = min(max(fields.after_of(f, seen.batch, seen.start + t) - key, 0), count)
            lse_0, delta_0 = lse[r], delta[r]
        if r + 1 < seen.rows:
            t = (r + 1) // group
            since_1 = min(max(seen.first[t] - key, 0), count)
            until_1 = min(max(fields.after_of(f, seen.batch, seen.start + t) - key, 0), count)
            lse_1, delta_1 = lse[r + 1], delta[r + 1]
        place, spans = 4 * (r * pitch + near), (since_0, until_0, since_1, until_1)
        row, ends, differences = slopes + 2 * (r * pitch + near), (lse_0, lse_1), (delta_0, delta_1)
        if f[AT.capped]:
            _numba_softmax.capped_slopes(
                scores + place, changes + place, 4 * pitch, row, 2 * pitch, spans, count, ends, differences,
                factors[0], factors[1],
            )  # fmt: skip
        else:
            _numba_softmax.slopes(
                scores + place, changes + place, 4 * pitch, row, 2 * pitch, spans, count, ends, differences,
                factors[0], _f32(1),
            )  # fmt: skip


@_njit
def _turned(f: Any, seen: Seen, pairs: int, most: int, target: int) -> None:
    """Pairs of rows [rows, width] to rows of keys [width, rows], zeros where a block of rows sees no key of a tile."""
    pitch = f[AT.pitch]
    for r in range(0, seen.rows, BLOCK):
        low, high = sight(f, seen, r)
        for key in range(0, rounded_up(seen.width, BLOCK), 16):
            place = target + 2 * (key * most + r)
            if low <= key < rounded_up(high, BLOCK):
                turn_tile(pairs + 4 * (r * pitch + key), 8 * pitch, place, 2 * most)
            else:
                for line in range(16):
                    vectors.clear(floats(place + 2 * line * most, 0), 0, 16)


@_njit
def _over_rows(f: Any, seen: Seen, turned: int, most: int, paired: int, out: int) -> None:
    """out [width, wide] += turned [width, rows] @ paired [rows, wide], for the rows that see some key of a tile."""
    wide = f[AT.wide]
    for key in range(0, seen.width, BLOCK):
        start, end = most, 0
        for r in range(0, seen.rows, BLOCK):
            low, high = sight(f, seen, r)
            if low <= key < high:
                start, end = min(start, r), r + BLOCK
        if start < end:
            left, depth = turned + 2 * (key * most + start), (end - start) // BLOCK
            for channel in range(0, wide, BLOCK):
                right = paired + (channel * most + start * BLOCK) * 2
                add_product(1, depth, left, 2 * most, right, out + 4 * (key * wide + channel), 4 * wide)


@_njit
def _block_gradient(data: Any, f: Any, room: int, block: Block) -> None:
    """See over_parts of _numba_loops.py."""
    group, unit, pitch, wide, d = f[AT.group], f[AT.unit], f[AT.pitch], f[AT.wide], f[AT.d]
    most = rounded_up(f[AT.block] * group, BLOCK)
    row, batch, head, start, count = block.row, block.batch, block.head, block.start, block.queries
    queries = room  # bfloat16 [rows, wide]
    upstream = queries + 2 * most * wide  # bfloat16 [rows, wide]
    paired_queries = upstream + 2 * most * wide  # bfloat16 [wide / 32, rows, 32]
    paired_upstream = paired_queries + 2 * most * wide  # bfloat16 [wide / 32, rows, 32]
    dq = paired_upstream + 2 * most * wide  # [rows, wide]
    scores = dq + 4 * most * wide  # [rows, pitch]
    changes = scores + 4 * most * pitch  # [rows, pitch]
    slopes = changes + 4 * most * pitch  # bfloat16 [rows, pitch]
    turned = slopes + 2 * most * pitch  # bfloat16 [width, rows]
    delta = floats(turned + 2 * most * pitch, 0)  # [rows]
    lse = floats(turned + 2 * most * pitch, most)  # [rows]
    rows, high = count * group, fields.after_of(f, batch, start + count - 1)
    whole = rounded_up(rows, BLOCK)
    for r in range(rows):
        t, g = start + r // group, head + r % group
        # as float32 for a moment, where dq is going to be
        delta[r], lse[r] = vectors.read_gradient(data, f, batch, t, g, dq, dq + 4 * wide)
        vectors.copy_row(f[AT.q], fields.at(f, AT.q, batch, t, g), queries + 2 * r * wide, d, wide)
        vectors.copy_row(f[AT.dout], fields.at(f, AT.dout, batch, t, g), upstream + 2 * r * wide, d, wide)
    for r in range(rows, whole):
        vectors.copy_row(f[AT.q], 0, queries + 2 * r * wide, 0, wide)
        vectors.copy_row(f[AT.q], 0, upstream + 2 * r * wide, 0, wide)
    pair_rows(whole, wide, queries, paired_queries, 2 * BLOCK * most)
    pair_rows(whole, wide, upstream, paired_upstream, 2 * BLOCK * most)
    vectors.clear(floats(dq, 0), 0, whole * wide)
    first = fields.firsts(f, batch, start)
    low = fields.first_of(first, 0, count) // unit * unit
    tile = equal_tiles(f, high - low)
    for begin in range(low, high, tile):
        seen = Seen(first, row, rows, count, batch, start, begin, min(tile, high - begin))
        across(data, f, seen, queries, wide // 2, AT.k, scores)
        across(data, f, seen, upstream, wide // 2, AT.v, changes)
        _slopes(f, seen, scores, changes, slopes, lse, delta)
        down(data, f, seen, slopes, AT.k_down, _f32(1), _f32(1), dq)
        share = block.share + 4 * (begin - block.base) * wide
        _turned(f, seen, scores, most, turned)
        _over_rows(f, seen, turned, most, paired_upstream, f[AT.dv] + share)
        _turned(f, seen, changes, most, turned)
        _over_rows(f, seen, turned, most, paired_queries, f[AT.dk] + share)
    for r in range(rows):
        vectors.write_dq(data, f, batch, start + r // group, head + r % group, floats(dq, r * wide))


_gradient = _numba_loops.over_parts(_block_gradient)


def gradient(data: Any) -> None:
    """See _numba_loops.py."""
    _native_amx.configure()
    _gradient(data)
    _native_amx.release()
