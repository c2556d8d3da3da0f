"""The compiled code of the numba.tiled variants of local_attention and its gradient: products in registers.

Every product is made of tiles of ROWS rows by PANEL columns that stay in registers: per step of the inner dimension a
row of PANEL values is loaded, and each of ROWS values multiplies it. What is loaded as rows lies in panels: [n, inner,
PANEL], so that the steps of a tile are read from front to back. A tile is left out where no query of it sees a key of
it, and its inner dimension is cut to what they see, so that almost nothing is computed in vain. In between, softmax or
its gradient is done a row of scores at a time, in the first-level cache. See _numba_rows.py.

The forward products of bfloat16 multiply pairs of its values and add both to a float32 (AVX512-BF16): a panel's step
then holds two steps of the inner dimension, side by side, in the same four bytes that one float32 takes. Scores are
not rounded, weights are. The gradient widens bfloat16 and multiplies in float32.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

import numba

from griffin_kernels.ops._native import take
from griffin_kernels.ops.local_attention import _numba_products, _numba_rows
from griffin_kernels.ops.local_attention._numba_products import PANEL, ROWS, add_tile, set_tile
from griffin_kernels.ops.local_attention._numba_rows import (
    _HIDDEN,
    AT,
    LANES,
    _address,
    _clear,
    _floats,
    _is_half,
    _longs,
    _read_row,
    _scale,
    _shorts,
    _write_row,
    at,
    clear_unseen,
    first_of,
    firsts,
    located,
    read_gradient,
    slope,
    weigh,
    write_dq,
    write_weighted,
)

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, *(str(module.__file__) for module in (_numba_products, _numba_rows)))
"""Sources that the kernels are made from, besides _native.py."""


@_njit
def _copy_row(address: int, index: int, target: int, count: int) -> None:
    """``count`` bfloat16 as they are, and a zero where they are odd."""
    source, out = _shorts(address, index), _shorts(target, 0)
    for j in range(count):
        out[j] = source[j]
    if count % 2:
        out[count] = numba.uint16(0)


Seen = tuple[int, int, int, int, int]
"""Of a block and a tile of keys: rows, queries, the key index of the first query, the first key, how many keys."""


@_njit
def _sight(f: Any, first: Any, row: int, seen: Seen) -> tuple[int, int]:
    """Keys begin .. end - 1 that rows near ``row`` see, from the beginning of a panel; none where end is lower."""
    _, count, own, begin, width = seen
    group, start = f[AT.group], row // ROWS * ROWS
    end = min((start + ROWS - 1) // group + 1, count)
    low = max(first_of(first, start // group, end) - begin, 0)
    return low // PANEL * PANEL, min(own + end - begin, width)


@_njit
def _rounded_up(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@_njit
def _multiply_across(
    data: Any, f: Any, first: Any, seen: Seen, a: int, a_row: int, panels: int, steps: int, out: int
) -> None:
    """out [rows, width] = a [rows, steps] @ panels, where some query sees some key."""
    pitch, (rows, _, _, begin, width) = f[AT.pitch], seen
    for column in range(0, width, PANEL):
        panel = panels + 4 * (begin + column) * steps
        for r in range(0, rows, ROWS):
            low, high = _sight(f, first, r, seen)
            if low <= column < high:
                to = out + 4 * (r * pitch + column)
                set_tile(data, a + r * a_row, a_row, 4, panel, 4 * PANEL, steps, to, 4 * pitch)


@_njit
def _multiply_down(data: Any, f: Any, first: Any, seen: Seen, a: int, size: int, panels: int, out: int) -> None:
    """out [rows, wide] += a [rows, width] @ panels, for the keys that some query sees.

    size: bytes of an element of a; two of them are a step.
    """
    pitch, wide, (rows, _, _, begin, _) = f[AT.pitch], f[AT.wide], seen
    for r in range(0, rows, ROWS):
        low, high = _sight(f, first, r, seen)
        if low < high:
            left, steps = a + size * (r * pitch + low), ((high - low) * size + 3) // 4
            for column in range(0, wide, PANEL):
                panel = panels + size * (column * f[AT.padded] + (begin + low) * PANEL)
                add_tile(data, left, size * pitch, 4, panel, 4 * PANEL, steps, out + 4 * (r * wide + column), 4 * wide)


def attend(data: Any) -> None:
    """out and lse; a block is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch, wide = f[AT.block], f[AT.time], f[AT.group], f[AT.d], f[AT.pitch], f[AT.wide]
    half = _is_half(data)
    size = 2 if half else 4
    steps = (d * size + 3) // 4  # of d
    most, earlier = _rounded_up(block * group, ROWS), f[AT.keys] - time
    factor = _floats(f[AT.factors], 0)[0]
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, steps]
    weighted = queries + 4 * most * steps  # [rows, wide]
    scores = weighted + 4 * most * wide  # [rows, pitch]
    weights = scores + 4 * most * pitch if half else scores  # [rows, pitch]
    largest = _floats(scores + 8 * most * pitch, 0)  # [rows]
    total = _floats(scores + 8 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[AT.items]:
        row, piece, batch, head = located(f, item)
        start = piece * block
        count, own = min(block, time - start), earlier + start
        rows = count * group
        for r in range(rows):
            index = at(f, AT.q, batch, start + r // group, head + r % group)
            if half:
                _copy_row(f[AT.q], index, queries + 4 * r * steps, d)
            else:
                _read_row(data, f[AT.q], index, queries + 4 * r * steps, factor, d)
            largest[r], total[r] = _f32(_HIDDEN), _f32(0)
        _clear(_floats(queries, 0), rows * steps, _rounded_up(rows, ROWS) * steps)
        _clear(_floats(weighted, 0), 0, _rounded_up(rows, ROWS) * wide)
        k, v = f[AT.k] + 4 * row * f[AT.padded] * steps, f[AT.v] + size * row * f[AT.padded] * wide
        first, high = firsts(f, batch, start), own + count
        low = first_of(first, 0, count) // PANEL * PANEL
        for begin in range(low, high, f[AT.tile]):
            width = min(f[AT.tile], high - begin)
            tile = (rows, count, own, begin, width)
            _multiply_across(data, f, first, tile, queries, 4 * steps, k, steps, scores)
            for r in range(rows):
                near, far = _sight(f, first, r, tile)
                if near >= far:
                    continue
                t, whole, values = r // group, _rounded_up(far - near, LANES), _floats(scores, r * pitch + near)
                if half:
                    _scale(values, factor, whole)
                seen, after = max(first[t] - begin - near, 0), min(max(own + t + 1 - begin - near, 0), far - near)
                weigh(f, values, seen, after, whole, r, largest, total, _floats(weighted, r * wide))
                if half:
                    _write_row(data, weights, r * pitch + near, values, _f32(1), whole)
            _multiply_down(data, f, first, tile, weights, size, v, weighted)
        for r in range(rows):
            values = _floats(weighted, r * wide)
            write_weighted(data, f, batch, start + r // group, head + r % group, values, largest[r], total[r])
        item = take(data, 0)


@_njit
def _add_transposed(f: Any, first: Any, seen: Seen, a: int, b: int, b_row: int, out: int) -> None:
    """out [width, wide] += a [rows, width]^T @ b [rows, wide], for queries that see some key."""
    _, count, own, begin, width = seen
    pitch, wide, group = f[AT.pitch], f[AT.wide], f[AT.group]
    for key in range(0, width, ROWS):
        start, end = max(begin + key - own, 0), count
        while end > start and first[end - 1] >= begin + key + ROWS:
            end -= 1
        if start < end:
            left, steps = a + 4 * (start * group * pitch + key), (end - start) * group
            for column in range(0, wide, PANEL):
                right = b + start * group * b_row + 4 * column
                to = out + 4 * (key * wide + column)
                add_tile(_floats(a, 0), left, 4, 4 * pitch, right, b_row, steps, to, 4 * wide)


def gradient(data: Any) -> None:
    """dq, and every item's share of dk and dv; a part of the queries is an item. Products are of float32."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch, wide = f[AT.block], f[AT.time], f[AT.group], f[AT.d], f[AT.pitch], f[AT.wide]
    most, earlier = _rounded_up(block * group, ROWS), f[AT.keys] - time
    # rows of a power of two would fall on few lines of the first-level cache
    step = wide + 16
    size = 4 * step
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, step]
    upstream = queries + 4 * most * step  # [rows, step]
    slopes = upstream + 4 * most * step  # [rows, wide]
    scores = slopes + 4 * most * wide  # [rows, pitch]
    products = scores + 4 * most * pitch  # [rows, pitch]
    delta = _floats(products + 4 * most * pitch, 0)  # [rows]
    lse = _floats(products + 4 * most * pitch, most)  # [rows]
    wide_data = _floats(queries, 0)
    # channels beyond d, and rows beyond a block's
    _clear(wide_data, 0, 2 * most * step)
    item = take(data, 0)
    while item < f[AT.items]:
        row, piece, batch, head = located(f, item)
        # the last parts may see the most keys: those first
        piece = f[AT.pieces] - 1 - piece
        part = piece * f[AT.part]
        base = max(0, earlier + part - (f[AT.window] - 1)) // PANEL * PANEL
        shares = 4 * (row * f[AT.pieces] + piece) * f[AT.reach] * wide
        _clear(_floats(f[AT.dk] + shares, 0), 0, f[AT.reach] * wide)
        _clear(_floats(f[AT.dv] + shares, 0), 0, f[AT.reach] * wide)
        keys = 4 * row * f[AT.padded]
        k_across, v_across, k_down = f[AT.k] + keys * d, f[AT.v] + keys * d, f[AT.k_down] + keys * wide
        for start in range(part, min(part + f[AT.part], time), block):
            count, own = min(block, time - start), earlier + start
            rows = count * group
            for r in range(rows):
                t, g, place = start + r // group, head + r % group, r * size
                delta[r], lse[r] = read_gradient(data, f, batch, t, g, upstream + place, queries + place)
            _clear(_floats(slopes, 0), 0, most * wide)
            first, high = firsts(f, batch, start), own + count
            low = first_of(first, 0, count) // PANEL * PANEL
            for begin in range(low, high, f[AT.tile]):
                width = min(f[AT.tile], high - begin)
                tile = (rows, count, own, begin, width)
                _multiply_across(wide_data, f, first, tile, queries, size, k_across, d, scores)
                _multiply_across(wide_data, f, first, tile, upstream, size, v_across, d, products)
                for r in range(rows):
                    near, far = _sight(f, first, r, tile)
                    t, p, ds = r // group, _floats(scores, r * pitch), _floats(products, r * pitch)
                    if near < far:
                        p_seen, ds_seen = _floats(scores, r * pitch + near), _floats(products, r * pitch + near)
                        slope(f, p_seen, ds_seen, lse[r], delta[r], _rounded_up(far - near, LANES))
                    every = _rounded_up(width, PANEL)
                    clear_unseen(p, ds, min(max(first[t] - begin, 0), every), max(own + t + 1 - begin, 0), every)
                _multiply_down(wide_data, f, first, tile, products, 4, k_down, slopes)
                share = shares + 4 * (begin - base) * wide
                _add_transposed(f, first, tile, products, queries, size, f[AT.dk] + share)
                _add_transposed(f, first, tile, scores, upstream, size, f[AT.dv] + share)
            for r in range(rows):
                t, g, values = start + r // group, head + r % group, _floats(slopes, r * wide)
                write_dq(data, f, batch, t, g, values, _floats(f[AT.factors], 2)[0])
        item = take(data, 0)
