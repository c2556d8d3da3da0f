"""The compiled code of the numba variants of local_attention and its gradient: blocks of queries against their keys.

A block's queries, of all G heads that share a key head, are rows of one matrix; its scores, for a tile of keys at a
time, are a product of torch's BLAS, called here by one thread for itself. What comes between the products happens a
row of scores at a time, in the first-level cache. The keys that a query sees are one range, first_t .. e_t, so that
there are no masks: scores outside count as -3e38, whose power is 0.

Scores are in base 2: rows are scaled by scale log2(e), or with a softcap by 2 scale log2(e) / softcap, so that
tanh(s) = 1 - 2 / (2^s + 1) needs no further factor.

Kernels are C functions of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see FIELDS). Work
items are taken from a shared counter in that block by however many threads call it; every item is the work of one
thread and does not depend on which. The pointer's type names the data's dtype: float32, or uint16 for bfloat16; keys
and values are float32.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call"

from __future__ import annotations

import math
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils

from griffin_kernels.ops._native import FLOAT, INT8, INT32, INT64, intrinsic, take
from griffin_kernels.ops.local_attention import _numba_rows
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
    _largest,
    _longs,
    _power,
    _powers,
    _read_row,
    _scale,
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
    "shared",  # Hkv
    "group",  # G = Hq / Hkv
    "d",
    "tile",  # keys in a tile, at most
    "pitch",  # from one row of scores to the next: at least tile, rounded up to LANES
    "first",  # int64 [B, T]: the first key that each query sees
    "first_batch",
    "q",
    "q_batch",
    "q_time",
    "q_head",
    "k",  # float32
    "k_batch",
    "k_time",
    "k_head",
    "v",  # float32
    "v_batch",
    "v_time",
    "v_head",
    "out",
    "out_batch",
    "out_time",
    "out_head",
    "lse",  # float32 [B, Hq, T], or 0
    "scratch",  # float32 [threads, scratch_place]
    "scratch_place",
    "factors",  # float32: FACTORS
    "capped",  # 1: scores are bent
    "sgemm",  # Blas.sgemm
    "set_threads",  # Blas.set_threads
    "dout",  # from here on for the gradient only
    "dout_batch",
    "dout_time",
    "dout_head",
    "dq",  # contiguous, as q
    "part",  # queries of an item, a multiple of block
    "reach",  # keys that they see, at most
    "window",
    "dk",  # float32 [items, reach, d]
    "dv",  # float32 [items, reach, d]
)
"""Names of the integers. Addresses in bytes, strides in elements; channels of every tensor are contiguous."""

FACTORS = ("rows", "cap", "dq", "dk")
"""Numbers: of q; softcap log2(e); of dq; of dk, whose queries have that of q already."""

FILES = (__file__, str(_numba_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_PLACES, _ITEMS, _PIECES, _BLOCK = (_AT[n] for n in ("places", "items", "pieces", "block"))
_TIME, _KEYS, _SHARED, _GROUP, _D = (_AT[n] for n in ("time", "keys", "shared", "group", "d"))
_TILE, _PITCH, _FIRST, _FIRST_BATCH = (_AT[n] for n in ("tile", "pitch", "first", "first_batch"))
_Q, _K, _V, _OUT, _LSE = (_AT[n] for n in ("q", "k", "v", "out", "lse"))
_SCRATCH, _PLACE, _FACTORS, _CAPPED = (_AT[n] for n in ("scratch", "scratch_place", "factors", "capped"))
_SGEMM, _SET_THREADS = _AT["sgemm"], _AT["set_threads"]
_DOUT, _DQ, _PART, _REACH, _WINDOW, _DK, _DV = (_AT[n] for n in ("dout", "dq", "part", "reach", "window", "dk", "dv"))


@intrinsic
def _call_sgemm(
    typing: Any,
    function: Any,
    flags: Any,
    m: Any,
    n: Any,
    k: Any,
    alpha: Any,
    a: Any,
    lda: Any,
    b: Any,
    ldb: Any,
    beta: Any,
    c: Any,
    ldc: Any,
) -> Any:
    """Fortran's SGEMM, all of whose arguments are pointers. flags: 1, transpose a; 2, transpose b."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(value: Any) -> Any:
            slot = cgutils.alloca_once(builder, value.type)
            builder.store(value, slot)
            return slot

        def letter(bit: int) -> Any:
            is_set = builder.icmp_signed("!=", builder.and_(args[1], ir.Constant(INT64, bit)), ir.Constant(INT64, 0))
            return pointer(builder.select(is_set, ir.Constant(INT8, ord("T")), ir.Constant(INT8, ord("N"))))

        def size(index: int) -> Any:
            return pointer(builder.trunc(args[index], INT32))

        def matrix(index: int) -> Any:
            return builder.inttoptr(args[index], FLOAT.as_pointer())

        values = [letter(1), letter(2), size(2), size(3), size(4), pointer(args[5]), matrix(6), size(7), matrix(8)]
        values += [size(9), pointer(args[10]), matrix(11), size(12)]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    i, f = types.int64, types.float32
    return types.void(i, i, i, i, i, f, i, i, i, i, f, i, i), generate


@intrinsic
def _call_set_threads(typing: Any, function: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(INT32, [INT32])
        before = builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.trunc(args[1], INT32)])
        return builder.sext(before, INT64)

    return types.int64(types.int64, types.int64), generate


@_njit
def _set_threads(f: Any, count: int) -> int:
    """Have BLAS use ``count`` threads for each of this thread's products; how many it used before."""
    return _call_set_threads(f[_SET_THREADS], count) if f[_SET_THREADS] else 0


@_njit
def _times_transposed(
    f: Any, a: int, rows: int, a_step: int, b: int, columns: int, b_step: int, inner: int, out: int, step: int
) -> None:
    """out [rows, columns] = a [rows, inner] @ b [columns, inner]^T. Addresses, and elements from a row to the next."""
    # Fortran's matrices are ours transposed, and so is their product
    _call_sgemm(f[_SGEMM], 1, columns, rows, inner, _f32(1), b, b_step, a, a_step, _f32(0), out, step)


@_njit
def _times(
    f: Any,
    alpha: float,
    a: int,
    rows: int,
    a_step: int,
    b: int,
    columns: int,
    b_step: int,
    inner: int,
    beta: float,
    out: int,
    step: int,
) -> None:
    """out [rows, columns] = beta out + alpha a [rows, inner] @ b [inner, columns]."""
    _call_sgemm(f[_SGEMM], 0, columns, rows, inner, alpha, b, b_step, a, a_step, beta, out, step)


@_njit
def _add_transposed_times(
    f: Any, alpha: float, a: int, rows: int, a_step: int, b: int, columns: int, inner: int, out: int
) -> None:
    """out [rows, columns] += alpha a [inner, rows]^T @ b [inner, columns]."""
    _call_sgemm(f[_SGEMM], 2, columns, rows, inner, alpha, b, columns, a, a_step, _f32(1), out, columns)


@_njit
def _tile_of(f: Any, span: int) -> int:
    """Keys in each tile of ``span``: equal tiles, but for the last."""
    tiles = (span + f[_TILE] - 1) // f[_TILE]
    return ((span + tiles - 1) // tiles + LANES - 1) // LANES * LANES


@_njit
def _first_of(first: Any, count: int, low: int) -> int:
    """The first key that some query of a block sees."""
    for t in range(count):
        low = min(low, first[t])
    return low


def attend(data: Any) -> None:
    """out and lse; a block is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH]
    most, earlier = block * group, f[_KEYS] - time
    factor, cap = _floats(f[_FACTORS], 0)[0], _floats(f[_FACTORS], 1)[0]
    before = _set_threads(f, 1)
    queries = f[_SCRATCH] + 4 * take(data, _PLACES) * f[_PLACE]  # [rows, d]
    weighted = queries + 4 * most * d  # [rows, d]
    scores = weighted + 4 * most * d  # [rows, pitch]
    largest = _floats(scores + 4 * most * pitch, 0)  # [rows]
    total = _floats(scores + 4 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[_ITEMS]:
        row, start = item // f[_PIECES], item % f[_PIECES] * block
        batch, key_head = row // f[_SHARED], row % f[_SHARED]
        head, count = key_head * group, min(block, time - start)
        rows, own = count * group, earlier + start
        for r in range(rows):
            index = _at(f, _Q, batch, start + r // group, head + r % group)
            _read_row(data, f[_Q], index, queries + 4 * r * d, factor, d)
            largest[r], total[r] = _f32(_HIDDEN), _f32(0)
        first, high = _longs(f[_FIRST], batch * f[_FIRST_BATCH] + start), own + count
        low = _first_of(first, count, own)
        tile = _tile_of(f, high - low)
        for begin in range(low, high, tile):
            width = min(tile, high - begin)
            k, v = f[_K] + 4 * _at(f, _K, batch, begin, key_head), f[_V] + 4 * _at(f, _V, batch, begin, key_head)
            _times_transposed(f, queries, rows, d, k, width, f[_K + 2], d, scores, pitch)
            whole = (width + LANES - 1) // LANES * LANES
            for r in range(rows):
                t, values = r // group, _floats(scores, r * pitch)
                if f[_CAPPED]:
                    _bend(values, cap, whole)
                _hide(values, max(first[t] - begin, 0), min(max(own + t + 1 - begin, 0), width), whole)
                top = max(largest[r], _largest(values, whole))
                # weights of a row that has seen nothing yet are 0
                shift = max(top, _f32(0.5 * _HIDDEN))
                _powers(values, shift, whole)
                if begin > low:
                    shrunk = _power(largest[r] - shift)
                    total[r] *= shrunk
                    _scale(_floats(weighted, r * d), shrunk, d)
                total[r] += _sum(values, whole)
                largest[r] = top
            beta = _f32(1) if begin > low else _f32(0)
            _times(f, _f32(1), scores, rows, pitch, v, d, f[_V + 2], width, beta, weighted, d)
        for r in range(rows):
            t, g = start + r // group, head + r % group
            row = _floats(weighted, r * d)
            _write_row(data, f[_OUT], _at(f, _OUT, batch, t, g), row, _f32(1) / total[r], d)
            if f[_LSE]:
                lse = _floats(f[_LSE], (batch * f[_SHARED] * group + g) * time + t)
                lse[0] = _f32(_LN2) * largest[r] + math.log(total[r])
        item = take(data, 0)
    _set_threads(f, before)


def gradient(data: Any) -> None:
    """dq, and every item's share of dk and dv; a part of the queries is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH]
    most, heads, earlier = block * group, f[_SHARED] * group, f[_KEYS] - time
    factors = _floats(f[_FACTORS], 0)
    cap = factors[1]
    before = _set_threads(f, 1)
    queries = f[_SCRATCH] + 4 * take(data, _PLACES) * f[_PLACE]  # [rows, d]
    upstream = queries + 4 * most * d  # [rows, d]
    slopes = upstream + 4 * most * d  # [rows, d]
    scores = slopes + 4 * most * d  # [rows, pitch]
    products = scores + 4 * most * pitch  # [rows, pitch]
    delta = _floats(products + 4 * most * pitch, 0)  # [rows]
    lse = _floats(products + 4 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[_ITEMS]:
        # the last parts may see the most keys: those first
        row, piece = item // f[_PIECES], f[_PIECES] - 1 - item % f[_PIECES]
        batch, key_head = row // f[_SHARED], row % f[_SHARED]
        head, part = key_head * group, piece * f[_PART]
        base = max(0, earlier + part - (f[_WINDOW] - 1))
        shares = 4 * (row * f[_PIECES] + piece) * f[_REACH] * d
        _clear(_floats(f[_DK] + shares, 0), 0, f[_REACH] * d)
        _clear(_floats(f[_DV] + shares, 0), 0, f[_REACH] * d)
        for start in range(part, min(part + f[_PART], time), block):
            count = min(block, time - start)
            rows, own = count * group, earlier + start
            for r in range(rows):
                t, g = start + r // group, head + r % group
                _read_row(data, f[_DOUT], _at(f, _DOUT, batch, t, g), upstream + 4 * r * d, _f32(1), d)
                # the queries' place holds out for a moment
                _read_row(data, f[_OUT], _at(f, _OUT, batch, t, g), queries + 4 * r * d, _f32(1), d)
                delta[r] = _dot(_floats(upstream, r * d), _floats(queries, r * d), d)
                _read_row(data, f[_Q], _at(f, _Q, batch, t, g), queries + 4 * r * d, factors[0], d)
                lse[r] = _f32(1 / _LN2) * _floats(f[_LSE], (batch * heads + g) * time + t)[0]
            first, high = _longs(f[_FIRST], batch * f[_FIRST_BATCH] + start), own + count
            low = _first_of(first, count, own)
            tile = _tile_of(f, high - low)
            for begin in range(low, high, tile):
                width = min(tile, high - begin)
                k, v = f[_K] + 4 * _at(f, _K, batch, begin, key_head), f[_V] + 4 * _at(f, _V, batch, begin, key_head)
                _times_transposed(f, queries, rows, d, k, width, f[_K + 2], d, scores, pitch)
                _times_transposed(f, upstream, rows, d, v, width, f[_V + 2], d, products, pitch)
                whole = (width + LANES - 1) // LANES * LANES
                for r in range(rows):
                    t, p, ds = r // group, _floats(scores, r * pitch), _floats(products, r * pitch)
                    if f[_CAPPED]:
                        _bend(p, cap, whole)
                        _bent_slopes(p, ds, lse[r], delta[r], _f32(1) / cap, whole)
                    else:
                        _slopes(p, ds, lse[r], delta[r], whole)
                    seen, after = min(max(first[t] - begin, 0), width), max(own + t + 1 - begin, 0)
                    _clear(p, 0, seen)
                    _clear(ds, 0, seen)
                    _clear(p, after, width)
                    _clear(ds, after, width)
                beta = _f32(1) if begin > low else _f32(0)
                _times(f, factors[2], products, rows, pitch, k, d, f[_K + 2], width, beta, slopes, d)
                share = shares + 4 * (begin - base) * d
                _add_transposed_times(f, factors[3], products, width, pitch, queries, d, rows, f[_DK] + share)
                _add_transposed_times(f, _f32(1), scores, width, pitch, upstream, d, rows, f[_DV] + share)
            for r in range(rows):
                index = ((batch * time + start + r // group) * heads + head + r % group) * d
                _write_row(data, f[_DQ], index, _floats(slopes, r * d), _f32(1), d)
        item = take(data, 0)
    _set_threads(f, before)
