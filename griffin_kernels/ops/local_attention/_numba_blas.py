"""The compiled code of the numba.blocked variants of local_attention and its gradient: products by torch's BLAS.

A block's scores, for a tile of keys at a time, are a product of torch's BLAS, called here by one thread for itself.
What comes between the products happens a row of scores at a time, in the first-level cache. Keys and values are
float32. See _numba_fields.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils

from griffin_kernels.ops._native import FLOAT, INT8, INT32, INT64, intrinsic, take
from griffin_kernels.ops.local_attention import _numba_fields, _numba_rows
from griffin_kernels.ops.local_attention._numba_fields import (
    AT,
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
from griffin_kernels.ops.local_attention._numba_rows import (
    _HIDDEN,
    LANES,
    _address,
    _clear,
    _floats,
    _longs,
    _read_row,
)

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, str(_numba_fields.__file__), str(_numba_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""


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
    return _call_set_threads(f[AT.set_threads], count) if f[AT.set_threads] else 0


@_njit
def _times_transposed(
    f: Any, a: int, rows: int, a_step: int, b: int, columns: int, b_step: int, inner: int, out: int, step: int
) -> None:
    """out [rows, columns] = a [rows, inner] @ b [columns, inner]^T. Addresses, and elements from a row to the next."""
    # Fortran's matrices are ours transposed, and so is their product
    _call_sgemm(f[AT.sgemm], 1, columns, rows, inner, _f32(1), b, b_step, a, a_step, _f32(0), out, step)


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
    _call_sgemm(f[AT.sgemm], 0, columns, rows, inner, alpha, b, b_step, a, a_step, beta, out, step)


@_njit
def _add_transposed_times(
    f: Any, alpha: float, a: int, rows: int, a_step: int, b: int, columns: int, inner: int, out: int
) -> None:
    """out [rows, columns] += alpha a [inner, rows]^T @ b [inner, columns]."""
    _call_sgemm(f[AT.sgemm], 2, columns, rows, inner, alpha, b, columns, a, a_step, _f32(1), out, columns)


@_njit
def _rows_from(f: Any, tensor: int, batch: int, begin: int, head: int) -> int:
    """Address of the keys or values from ``begin`` on that a query head reads."""
    return f[tensor] + 4 * at(f, tensor, batch, begin, head // f[AT.group])


@_njit
def _tile_of(f: Any, span: int) -> int:
    """Keys in each tile of ``span``: equal tiles, but for the last."""
    tiles = (span + f[AT.tile] - 1) // f[AT.tile]
    return ((span + tiles - 1) // tiles + LANES - 1) // LANES * LANES


def attend(data: Any) -> None:
    """out and lse; a block is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch = f[AT.block], f[AT.time], f[AT.group], f[AT.d], f[AT.pitch]
    most, earlier = block * group, f[AT.keys] - time
    before = _set_threads(f, 1)
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, d]
    weighted = queries + 4 * most * d  # [rows, d]
    scores = weighted + 4 * most * d  # [rows, pitch]
    largest = _floats(scores + 4 * most * pitch, 0)  # [rows]
    total = _floats(scores + 4 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[AT.items]:
        _, piece, batch, head = located(f, item)
        start = piece * block
        count, own = min(block, time - start), earlier + start
        rows = count * group
        for r in range(rows):
            index = at(f, AT.q, batch, start + r // group, head + r % group)
            _read_row(data, f[AT.q], index, queries + 4 * r * d, _floats(f[AT.factors], 0)[0], d)
            largest[r], total[r] = _f32(_HIDDEN), _f32(0)
        first, high = firsts(f, batch, start), own + count
        low = first_of(first, 0, count)
        tile = _tile_of(f, high - low)
        for begin in range(low, high, tile):
            width = min(tile, high - begin)
            k, v = _rows_from(f, AT.k, batch, begin, head), _rows_from(f, AT.v, batch, begin, head)
            _times_transposed(f, queries, rows, d, k, width, f[AT.k + 2], d, scores, pitch)
            whole = (width + LANES - 1) // LANES * LANES
            for r in range(rows):
                t, values = r // group, _floats(scores, r * pitch)
                seen, after = max(first[t] - begin, 0), min(max(own + t + 1 - begin, 0), width)
                weigh(f, values, seen, after, whole, r, largest, total, _floats(weighted, r * d))
            beta = _f32(1) if begin > low else _f32(0)
            _times(f, _f32(1), scores, rows, pitch, v, d, f[AT.v + 2], width, beta, weighted, d)
        for r in range(rows):
            row = _floats(weighted, r * d)
            write_weighted(data, f, batch, start + r // group, head + r % group, row, largest[r], total[r])
        item = take(data, 0)
    _set_threads(f, before)


def gradient(data: Any) -> None:
    """dq, and every item's share of dk and dv; a part of the queries is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch = f[AT.block], f[AT.time], f[AT.group], f[AT.d], f[AT.pitch]
    most, earlier = block * group, f[AT.keys] - time
    factors = _floats(f[AT.factors], 0)
    before = _set_threads(f, 1)
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, d]
    upstream = queries + 4 * most * d  # [rows, d]
    slopes = upstream + 4 * most * d  # [rows, d]
    scores = slopes + 4 * most * d  # [rows, pitch]
    products = scores + 4 * most * pitch  # [rows, pitch]
    delta = _floats(products + 4 * most * pitch, 0)  # [rows]
    lse = _floats(products + 4 * most * pitch, most)  # [rows]
    item = take(data, 0)
    while item < f[AT.items]:
        row, piece, batch, head = located(f, item)
        # the last parts may see the most keys: those first
        piece = f[AT.pieces] - 1 - piece
        part = piece * f[AT.part]
        base = max(0, earlier + part - (f[AT.window] - 1))
        shares = 4 * (row * f[AT.pieces] + piece) * f[AT.reach] * d
        _clear(_floats(f[AT.dk] + shares, 0), 0, f[AT.reach] * d)
        _clear(_floats(f[AT.dv] + shares, 0), 0, f[AT.reach] * d)
        for start in range(part, min(part + f[AT.part], time), block):
            count, own = min(block, time - start), earlier + start
            rows = count * group
            for r in range(rows):
                t, g, place = start + r // group, head + r % group, 4 * r * d
                delta[r], lse[r] = read_gradient(data, f, batch, t, g, upstream + place, queries + place)
            first, high = firsts(f, batch, start), own + count
            low = first_of(first, 0, count)
            tile = _tile_of(f, high - low)
            for begin in range(low, high, tile):
                width = min(tile, high - begin)
                k, v = _rows_from(f, AT.k, batch, begin, head), _rows_from(f, AT.v, batch, begin, head)
                _times_transposed(f, queries, rows, d, k, width, f[AT.k + 2], d, scores, pitch)
                _times_transposed(f, upstream, rows, d, v, width, f[AT.v + 2], d, products, pitch)
                whole = (width + LANES - 1) // LANES * LANES
                for r in range(rows):
                    t, p, ds = r // group, _floats(scores, r * pitch), _floats(products, r * pitch)
                    slope(f, p, ds, lse[r], delta[r], whole)
                    seen, after = min(max(first[t] - begin, 0), width), max(own + t + 1 - begin, 0)
                    clear_unseen(p, ds, seen, after, width)
                beta = _f32(1) if begin > low else _f32(0)
                _times(f, factors[2], products, rows, pitch, k, d, f[AT.k + 2], width, beta, slopes, d)
                share = shares + 4 * (begin - base) * d
                _add_transposed_times(f, factors[3], products, width, pitch, queries, d, rows, f[AT.dk] + share)
                _add_transposed_times(f, _f32(1), scores, width, pitch, upstream, d, rows, f[AT.dv] + share)
            for r in range(rows):
                write_dq(data, f, batch, start + r // group, head + r % group, _floats(slopes, r * d), _f32(1))
        item = take(data, 0)
    _set_threads(f, before)
