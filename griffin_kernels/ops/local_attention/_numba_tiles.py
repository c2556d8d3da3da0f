"""The compiled code of the numba.tiled variants of local_attention and its gradient: products in registers.

Every product is made of tiles of ROWS rows by PANEL columns that stay in registers: per step of the inner dimension a
row of PANEL values is loaded, and each of ROWS values multiplies it. What is loaded as rows lies in panels: [n, inner,
PANEL], so that the steps of a tile are read from front to back. A tile is left out where no query of it sees a key of
it, and its inner dimension is cut to what they see, so that almost nothing is computed in vain. In between, softmax or
its gradient is done a row of scores at a time, in the first-level cache. The keys that a query sees are one range,
first_t .. e_t, so that there are no masks: scores outside count as -3e38, whose power is 0.

Scores are in base 2: rows are scaled by scale log2(e), or with a softcap by 2 scale log2(e) / softcap, so that
tanh(s) = 1 - 2 / (2^s + 1) needs no further factor.

The forward products of bfloat16 multiply pairs of its values and add both to a float32 (AVX512-BF16): a panel's step
then holds two steps of the inner dimension, side by side, in the same four bytes that one float32 takes. Scores are
not rounded, weights are. The gradient widens bfloat16 and multiplies in float32.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see FIELDS). Work
items are taken from a shared counter in that block by however many threads call it; every item is the work of one
thread and does not depend on which. The pointer's type names the data's dtype: float32, or uint16 for bfloat16.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call, misc"

from __future__ import annotations

import math
from typing import Any

import numba

from griffin_kernels.ops._native import take
from griffin_kernels.ops.local_attention import _numba_products, _numba_rows
from griffin_kernels.ops.local_attention._numba_products import PANEL, ROWS, add_tile, set_tile
from griffin_kernels.ops.local_attention._numba_rows import (
    _HIDDEN,
    _LN2,
    LANES,
    _address,
    _at,
    _bend,
    _bent_slopes,
    _clear,
    _dot,
    _floats,
    _hide,
    _is_half,
    _largest,
    _longs,
    _power,
    _powers,
    _read_row,
    _scale,
    _shorts,
    _slopes,
    _sum,
    _write_row,
)

_njit: Any = numba.njit
_f32: Any = numba.float32

FIELDS = (
    "counter",  # next work item; the kernels advance it
    "places",  # next place in scratch; every thread takes one
    "items",  # B * Hkv * pieces, in that order
    "pieces",  # of time: blocks, or for the gradient parts, of which the last begin first
    "block",  # queries in a block
    "time",  # T
    "keys",  # S
    "padded",  # S, in whole panels
    "shared",  # Hkv
    "group",  # G = Hq / Hkv
    "d",
    "wide",  # d, in whole panels
    "tile",  # keys in a tile of scores, at most; whole panels
    "pitch",  # from one row of scores to the next: tile, rounded up to LANES, and LANES
    "first",  # int64 [B, T]: the first key that each query sees
    "first_batch",
    "q",
    "q_batch",
    "q_time",
    "q_head",
    "out",
    "out_batch",
    "out_time",
    "out_head",
    "k_across",  # [B, Hkv, padded / PANEL, d, PANEL], or pairs along d
    "v_down",  # [B, Hkv, wide / PANEL, padded, PANEL], or pairs along keys
    "lse",  # float32 [B, Hq, T], or 0
    "scratch",  # float32 [threads, scratch_place]
    "scratch_place",
    "factors",  # float32: FACTORS
    "capped",  # 1: scores are bent
    "dout",  # from here on for the gradient only
    "dout_batch",
    "dout_time",
    "dout_head",
    "dq",  # contiguous, as q
    "k_down",
    "v_across",
    "part",  # queries of an item, a multiple of block
    "reach",  # keys that they see, at most, in whole panels from the beginning of one
    "window",
    "dk",  # float32 [items, reach, wide]
    "dv",  # float32 [items, reach, wide]
)
"""Names of the integers. Addresses in bytes, strides in elements; channels of q, out, dout and dq are contiguous."""

FACTORS = ("rows", "cap", "dq")
"""Numbers: of q; softcap log2(e); of dq."""

FILES = (__file__, str(_numba_products.__file__), str(_numba_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_PLACES, _ITEMS, _PIECES, _BLOCK = (_AT[n] for n in ("places", "items", "pieces", "block"))
_TIME, _KEYS, _PADDED, _SHARED, _GROUP = (_AT[n] for n in ("time", "keys", "padded", "shared", "group"))
_D, _WIDE, _TILE, _PITCH = (_AT[n] for n in ("d", "wide", "tile", "pitch"))
_FIRST, _FIRST_BATCH, _Q, _OUT, _LSE = (_AT[n] for n in ("first", "first_batch", "q", "out", "lse"))
_K_ACROSS, _K_DOWN, _V_ACROSS, _V_DOWN = (_AT[n] for n in ("k_across", "k_down", "v_across", "v_down"))
_SCRATCH, _PLACE, _FACTORS, _CAPPED = (_AT[n] for n in ("scratch", "scratch_place", "factors", "capped"))
_DOUT, _DQ, _PART, _REACH, _WINDOW, _DK, _DV = (_AT[n] for n in ("dout", "dq", "part", "reach", "window", "dk", "dv"))


@_njit
def _copy_row(address: int, index: int, target: int, count: int) -> None:
    """``count`` bfloat16 as they are, and a zero where they are odd."""
    source, out = _shorts(address, index), _shorts(target, 0)
    for j in range(count):
        out[j] = source[j]
    if count % 2:
        out[count] = numba.uint16(0)


@_njit
def _first_of(first: Any, begin: int, end: int) -> int:
    """The first key that some of a block's queries begin .. end - 1 sees."""
    low = first[begin]
    for t in range(begin + 1, end):
        low = min(low, first[t])
    return low


@_njit
def _sight(first: Any, row: int, group: int, count: int, own: int, begin: int, width: int) -> tuple[int, int]:
    """Keys begin .. end - 1 that rows near ``row`` see, from the beginning of a panel; none where end is lower."""
    start = row // ROWS * ROWS
    end = min((start + ROWS - 1) // group + 1, count)
    low = max(_first_of(first, start // group, end) - begin, 0)
    return low // PANEL * PANEL, min(own + end - begin, width)


@_njit
def _rounded_up(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@_njit
def _multiply_across(
    data: Any,
    f: Any,
    first: Any,
    rows: int,
    count: int,
    own: int,
    begin: int,
    width: int,
    a: int,
    a_row: int,
    panels: int,
    steps: int,
    out: int,
) -> None:
    """out [rows, width] = a [rows, steps] @ panels, where some query sees some key; from key ``begin``."""
    pitch = f[_PITCH]
    for column in range(0, width, PANEL):
        panel = panels + 4 * (begin + column) * steps
        for r in range(0, rows, ROWS):
            low, high = _sight(first, r, f[_GROUP], count, own, begin, width)
            if low <= column < high:
                set_tile(
                    data, a + r * a_row, a_row, 4, panel, 4 * PANEL, steps, out + 4 * (r * pitch + column), 4 * pitch
                )


@_njit
def _multiply_down(
    data: Any,
    f: Any,
    first: Any,
    rows: int,
    count: int,
    own: int,
    begin: int,
    width: int,
    a: int,
    size: int,
    panels: int,
    out: int,
) -> None:
    """out [rows, wide] += a [rows, width] @ panels, for the keys that some query sees; from key ``begin``.

    size: bytes of an element of a; two of them are a step.
    """
    pitch, wide = f[_PITCH], f[_WIDE]
    for r in range(0, rows, ROWS):
        low, high = _sight(first, r, f[_GROUP], count, own, begin, width)
        if low < high:
            left, steps = a + size * (r * pitch + low), ((high - low) * size + 3) // 4
            for column in range(0, wide, PANEL):
                panel = panels + size * (column * f[_PADDED] + (begin + low) * PANEL)
                add_tile(data, left, size * pitch, 4, panel, 4 * PANEL, steps, out + 4 * (r * wide + column), 4 * wide)


def attend(data: Any) -> None:
    """out and lse; a block is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch, wide = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH], f[_WIDE]
    half = _is_half(data)
    size = 2 if half else 4
    steps = (d * size + 3) // 4  # of d
    most, earlier = _rounded_up(block * group, ROWS), f[_KEYS] - time
    factor, cap = _floats(f[_FACTORS], 0)[0], _floats(f[_FACTORS], 1)[0]
    queries = f[_SCRATCH] + 4 * take(data, _PLACES) * f[_PLACE]  # [rows, steps]
    weighted = queries + 4 * most * steps  # [rows, wide]
    scores = weighted + 4 * most * wide  # [rows, pitch]
    weights = scores + 4 * most * pitch if half else scores  # [rows, pitch]
    largest = _floats(scores + 8 * most * pitch, 0)  # [rows]
    total = _floats(scores + 8 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[_ITEMS]:
        row, start = item // f[_PIECES], item % f[_PIECES] * block
        batch, key_head = row // f[_SHARED], row % f[_SHARED]
        head, count = key_head * group, min(block, time - start)
        rows, own = count * group, earlier + start
        for r in range(rows):
            index = _at(f, _Q, batch, start + r // group, head + r % group)
            if half:
                _copy_row(f[_Q], index, queries + 4 * r * steps, d)
            else:
                _read_row(data, f[_Q], index, queries + 4 * r * steps, factor, d)
            largest[r], total[r] = _f32(_HIDDEN), _f32(0)
        _clear(_floats(queries, 0), rows * steps, _rounded_up(rows, ROWS) * steps)
        _clear(_floats(weighted, 0), 0, _rounded_up(rows, ROWS) * wide)
        k, v = f[_K_ACROSS] + 4 * row * f[_PADDED] * steps, f[_V_DOWN] + size * row * f[_PADDED] * wide
        first, high = _longs(f[_FIRST], batch * f[_FIRST_BATCH] + start), own + count
        low = _first_of(first, 0, count) // PANEL * PANEL
        for begin in range(low, high, f[_TILE]):
            width = min(f[_TILE], high - begin)
            _multiply_across(data, f, first, rows, count, own, begin, width, queries, 4 * steps, k, steps, scores)
            for r in range(rows):
                near, far = _sight(first, r, group, count, own, begin, width)
                if near >= far:
                    continue
                t, whole, values = r // group, _rounded_up(far - near, LANES), _floats(scores, r * pitch + near)
                if half:
                    _scale(values, factor, whole)
                if f[_CAPPED]:
                    _bend(values, cap, whole)
                seen, after = max(first[t] - begin - near, 0), own + t + 1 - begin - near
                _hide(values, seen, min(max(after, 0), far - near), whole)
                top = max(largest[r], _largest(values, whole))
                # weights of a row that has seen nothing yet are 0
                shift = max(top, _f32(0.5 * _HIDDEN))
                _powers(values, shift, whole)
                if total[r] > 0:
                    shrunk = _power(largest[r] - shift)
                    total[r] *= shrunk
                    _scale(_floats(weighted, r * wide), shrunk, wide)
                total[r] += _sum(values, whole)
                largest[r] = top
                if half:
                    _write_row(data, weights, r * pitch + near, values, _f32(1), whole)
            _multiply_down(data, f, first, rows, count, own, begin, width, weights, size, v, weighted)
        for r in range(rows):
            t, g = start + r // group, head + r % group
            _write_row(data, f[_OUT], _at(f, _OUT, batch, t, g), _floats(weighted, r * wide), _f32(1) / total[r], d)
            if f[_LSE]:
                lse = _floats(f[_LSE], (batch * f[_SHARED] * group + g) * time + t)
                lse[0] = _f32(_LN2) * largest[r] + math.log(total[r])
        item = take(data, 0)


@_njit
def _add_transposed(
    f: Any,
    first: Any,
    rows: int,
    count: int,
    own: int,
    begin: int,
    width: int,
    a: int,
    b: int,
    b_row: int,
    out: int,
) -> None:
    """out [width, wide] += a [rows, width]^T @ b [rows, wide], for queries that see some key; from key ``begin``."""
    pitch, wide, group = f[_PITCH], f[_WIDE], f[_GROUP]
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
    block, time, group, d, pitch, wide = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH], f[_WIDE]
    most, heads, earlier = _rounded_up(block * group, ROWS), f[_SHARED] * group, f[_KEYS] - time
    factor, cap, factor_dq = _floats(f[_FACTORS], 0)[0], _floats(f[_FACTORS], 1)[0], _floats(f[_FACTORS], 2)[0]
    # rows of a power of two would fall on few lines of the first-level cache
    step = wide + 16
    queries = f[_SCRATCH] + 4 * take(data, _PLACES) * f[_PLACE]  # [rows, step]
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
    while item < f[_ITEMS]:
        # the last parts may see the most keys: those first
        row, piece = item // f[_PIECES], f[_PIECES] - 1 - item % f[_PIECES]
        batch, key_head = row // f[_SHARED], row % f[_SHARED]
        head, part = key_head * group, piece * f[_PART]
        base = max(0, earlier + part - (f[_WINDOW] - 1)) // PANEL * PANEL
        shares = 4 * (row * f[_PIECES] + piece) * f[_REACH] * wide
        _clear(_floats(f[_DK] + shares, 0), 0, f[_REACH] * wide)
        _clear(_floats(f[_DV] + shares, 0), 0, f[_REACH] * wide)
        keys = 4 * row * f[_PADDED]
        k_across, v_across = f[_K_ACROSS] + keys * d, f[_V_ACROSS] + keys * d
        k_down = f[_K_DOWN] + keys * wide
        for start in range(part, min(part + f[_PART], time), block):
            count = min(block, time - start)
            rows, own = count * group, earlier + start
            for r in range(rows):
                t, g = start + r // group, head + r % group
                _read_row(data, f[_DOUT], _at(f, _DOUT, batch, t, g), upstream + 4 * r * step, _f32(1), d)
                # the queries' place holds out for a moment
                _read_row(data, f[_OUT], _at(f, _OUT, batch, t, g), queries + 4 * r * step, _f32(1), d)
                delta[r] = _dot(_floats(upstream, r * step), _floats(queries, r * step), d)
                _read_row(data, f[_Q], _at(f, _Q, batch, t, g), queries + 4 * r * step, factor, d)
                lse[r] = _f32(1 / _LN2) * _floats(f[_LSE], (batch * heads + g) * time + t)[0]
            _clear(_floats(slopes, 0), 0, most * wide)
            first, high = _longs(f[_FIRST], batch * f[_FIRST_BATCH] + start), own + count
            low = _first_of(first, 0, count) // PANEL * PANEL
            for begin in range(low, high, f[_TILE]):
                width = min(f[_TILE], high - begin)
                size = 4 * step
                _multiply_across(
                    wide_data, f, first, rows, count, own, begin, width, queries, size, k_across, d, scores
                )
                _multiply_across(
                    wide_data, f, first, rows, count, own, begin, width, upstream, size, v_across, d, products
                )
                for r in range(rows):
                    near, far = _sight(first, r, group, count, own, begin, width)
                    t, p, ds = r // group, _floats(scores, r * pitch), _floats(products, r * pitch)
                    if near < far:
                        whole = _rounded_up(far - near, LANES)
                        p_seen, ds_seen = _floats(scores, r * pitch + near), _floats(products, r * pitch + near)
                        if f[_CAPPED]:
                            _bend(p_seen, cap, whole)
                            _bent_slopes(p_seen, ds_seen, lse[r], delta[r], _f32(1) / cap, whole)
                        else:
                            _slopes(p_seen, ds_seen, lse[r], delta[r], whole)
                    every = _rounded_up(width, PANEL)
                    seen, after = min(max(first[t] - begin, 0), every), max(own + t + 1 - begin, 0)
                    _clear(p, 0, seen)
                    _clear(ds, 0, seen)
                    _clear(p, after, every)
                    _clear(ds, after, every)
                _multiply_down(wide_data, f, first, rows, count, own, begin, width, products, 4, k_down, slopes)
                share = shares + 4 * (begin - base) * wide
                _add_transposed(f, first, rows, count, own, begin, width, products, queries, size, f[_DK] + share)
                _add_transposed(f, first, rows, count, own, begin, width, scores, upstream, size, f[_DV] + share)
            for r in range(rows):
                index = ((batch * time + start + r // group) * heads + head + r % group) * d
                _write_row(data, f[_DQ], index, _floats(slopes, r * wide), factor_dq, d)
        item = take(data, 0)
