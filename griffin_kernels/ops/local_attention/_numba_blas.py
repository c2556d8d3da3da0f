"""The compiled code of the numba.blocked variants of local_attention and its gradient: products by torch's BLAS.

A block's scores, for a tile of keys at a time, are a product of torch's BLAS, called here by one thread for itself.
What comes between the products happens a row of scores at a time, in the first-level cache. Keys and values are
float32. See _numba_rows.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils

from griffin_kernels.ops._native import FLOAT, INT8, INT32, INT64, intrinsic, take
from griffin_kernels.ops.local_attention import _numba_rows
from griffin_kernels.ops.local_attention._numba_rows import (
    _HIDDEN,
    AT,
    LANES,
    _address,
    _clear,
    _floats,
    _longs,
    _read_row,
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

FILES = (__file__, str(_numba_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""


AS_THEY_LIE, B_TRANSPOSED, A_TRANSPOSED = 0, 1, 2
"""Layouts of a product's factors: b [columns, inner] or a [inner, rows] in memory is used transposed."""


class Matrix(NamedTuple):
    """float32 rows: the address of the first, and elements from one to the next."""

    at: int
    step: int


@intrinsic
def _multiply(typing: Any, sgemm: Any, layout: Any, sizes: Any, alpha: Any, a: Any, b: Any, beta: Any, out: Any) -> Any:
    """out [rows, columns] = beta out + alpha a [rows, inner] @ b [inner, columns]. sizes: rows, columns, inner.

    By Fortran's SGEMM at an address, all of whose arguments are pointers. Its matrices are ours transposed, and so is
    their product.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(value: Any) -> Any:
            slot = cgutils.alloca_once(builder, value.type)
            builder.store(value, slot)
            return slot

        def letter(layout: int) -> Any:
            is_set = builder.icmp_signed("==", args[1], INT64(layout))
            return pointer(builder.select(is_set, ir.Constant(INT8, ord("T")), ir.Constant(INT8, ord("N"))))

        def matrix(packed: Any) -> Any:
            at, step = cgutils.unpack_tuple(builder, packed, 2)
            return builder.inttoptr(at, FLOAT.as_pointer()), pointer(builder.trunc(step, INT32))

        rows, columns, inner = (pointer(builder.trunc(n, INT32)) for n in cgutils.unpack_tuple(builder, args[2], 3))
        values = [letter(B_TRANSPOSED), letter(A_TRANSPOSED), columns, rows, inner, pointer(args[3])]
        values += [*matrix(args[5]), *matrix(args[4]), pointer(args[6]), *matrix(args[7])]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    i, f = types.int64, types.float32
    return types.void(i, i, types.UniTuple(i, 3), f, a, b, f, out), generate


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
def _rows_from(f: Any, tensor: int, batch: int, begin: int, head: int) -> Matrix:
    """The keys or values from ``begin`` on that a query head reads."""
    return Matrix(f[tensor] + 4 * at(f, tensor, batch, begin, head // f[AT.group]), f[tensor + 2])


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
    before, sgemm = _set_threads(f, 1), f[AT.sgemm]
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, d]
    weighted = queries + 4 * most * d  # [rows, d]
    scores = weighted + 4 * most * d  # [rows, pitch]
    of_p = Matrix(scores, pitch)
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
            _multiply(sgemm, B_TRANSPOSED, (rows, width, d), _f32(1), Matrix(queries, d), k, _f32(0), of_p)
            whole = (width + LANES - 1) // LANES * LANES
            for r in range(rows):
                t, values = r // group, _floats(scores, r * pitch)
                seen, after = max(first[t] - begin, 0), min(max(own + t + 1 - begin, 0), width)
                weigh(f, values, seen, after, whole, r, largest, total, _floats(weighted, r * d))
            beta = _f32(1) if begin > low else _f32(0)
            _multiply(sgemm, AS_THEY_LIE, (rows, d, width), _f32(1), of_p, v, beta, Matrix(weighted, d))
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
    before, sgemm = _set_threads(f, 1), f[AT.sgemm]
    queries = f[AT.scratch] + 4 * take(data, AT.places) * f[AT.scratch_place]  # [rows, d]
    upstream = queries + 4 * most * d  # [rows, d]
    slopes = upstream + 4 * most * d  # [rows, d]
    scores = slopes + 4 * most * d  # [rows, pitch]
    products = scores + 4 * most * pitch  # [rows, pitch]
    of_q, of_dout, of_p, of_ds = Matrix(queries, d), Matrix(upstream, d), Matrix(scores, pitch), Matrix(products, pitch)
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
                _multiply(sgemm, B_TRANSPOSED, (rows, width, d), _f32(1), of_q, k, _f32(0), of_p)
                _multiply(sgemm, B_TRANSPOSED, (rows, width, d), _f32(1), of_dout, v, _f32(0), of_ds)
                whole = (width + LANES - 1) // LANES * LANES
                for r in range(rows):
                    t, p, ds = r // group, _floats(scores, r * pitch), _floats(products, r * pitch)
                    slope(f, p, ds, lse[r], delta[r], whole)
                    seen, after = min(max(first[t] - begin, 0), width), max(own + t + 1 - begin, 0)
                    clear_unseen(p, ds, seen, after, width)
                beta = _f32(1) if begin > low else _f32(0)
                _multiply(sgemm, AS_THEY_LIE, (rows, d, width), factors[2], of_ds, k, beta, Matrix(slopes, d))
                share = shares + 4 * (begin - base) * d
                dk, dv = Matrix(f[AT.dk] + share, d), Matrix(f[AT.dv] + share, d)
                _multiply(sgemm, A_TRANSPOSED, (width, d, rows), factors[3], of_ds, of_q, _f32(1), dk)
                _multiply(sgemm, A_TRANSPOSED, (width, d, rows), _f32(1), of_p, of_dout, _f32(1), dv)
            for r in range(rows):
                write_dq(data, f, batch, start + r // group, head + r % group, _floats(slopes, r * d), _f32(1))
        item = take(data, 0)
    _set_threads(f, before)
