"""Compiled code of the native RMSNorm and of its gradient, row by row."""

# Python's types end where numba's begin.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops import _native_names, _native_rows
from griffin_kernels.ops._native import (
    BYTES,
    CACHE_LINE,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    WIDE,
    Strided,
    data_bytes,
    element_of,
    field,
    finish,
    intrinsic,
    loop,
    places,
    take,
)
from griffin_kernels.ops._native_names import named
from griffin_kernels.ops._native_rows import STREAM, RowLanes, number_of, row, wide_bytes

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernels. Addresses in bytes, strides in elements; channels are contiguous."""

    x: Strided  # data [B, T, D]; backward: what was normed
    residual: Strided  # data [B, T, D], or zeros
    dy: Strided  # backward only: data [B, T, D]
    ds: Strided  # backward only: data [B, T, D], or zeros
    items: int  # pieces of rows
    piece: int  # rows of a piece
    rows: int  # B * T
    time: int  # T
    width: int  # D
    stream: int  # 1: write y, or dx, past the caches; their rows must begin on a cache line
    weight: int  # the kernel's parameters [D]
    eps: int  # bits of a float64
    offset: int  # bits of a float64
    out: int  # y, or dx: data [B, T, D] contiguous
    s: int  # data [B, T, D] contiguous; with a residual
    sums: int  # backward only: wide [items, D], zeros: the gradients of weight


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__), str(_native_names.__file__))
"""Sources that the kernels are made from, besides _native.py."""

_UNROLLED = 4
"""Vectors summed side by side: as many sums hide the latency of a multiply-add."""


@intrinsic
def _double(typing: Any, bits: Any) -> Any:
    """The float64 of an integer's bits."""
    return types.float64(types.int64), lambda context, builder, signature, args: builder.bitcast(args[0], DOUBLE)


def _spread(v: RowLanes, scalar: Any) -> Any:
    """A float64 in every lane of the accumulator's dtype."""
    value = scalar if v.wide is DOUBLE else v.builder.fptrunc(scalar, FLOAT)
    if v.count == 1:
        return value
    undefined, zeros = (
        ir.Constant(v.of(v.wide), ir.Undefined),
        ir.Constant(ir.VectorType(INT32, v.count), [0] * v.count),
    )
    return v.builder.shuffle_vector(v.builder.insert_element(undefined, value, INT32(0)), undefined, zeros)


def _factor(v: RowLanes, weight: Any, offset: Any) -> Any:
    """weight_offset + weight."""
    parameters = dataclasses.replace(v, element=types.float32) if v.number == WIDE else v
    return v.add(_spread(v, offset), parameters.load(weight))


def _total(builder: Any, vector: Any) -> Any:
    """The sum of a vector's lanes: the upper half is added to the lower one until one lane is left."""
    count = vector.type.count
    while count > 1:
        count //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            ir.Constant(ir.VectorType(INT32, count), list(range(first, first + count))) for first in (0, count)
        )
        vector = builder.fadd(
            builder.shuffle_vector(vector, undefined, low), builder.shuffle_vector(vector, undefined, high)
        )
    return builder.extract_element(vector, INT32(0))


def _summed(count: int) -> Callable[[Callable[..., Sequence[Any]]], Any]:
    """Makes a numba function ``(data, channels, numbers)`` that gives ``count`` float64: sums over a row.

    It is made of ``emit(lanes, totals, *numbers)``, which adds the terms of some channels to the totals.
    """

    def decorated(emit: Callable[..., Sequence[Any]]) -> Any:
        @intrinsic
        def run(typing: Any, data: Any, channels: Any, numbers: Any) -> Any:
            element, number = element_of(data), number_of(data)
            vector = CACHE_LINE // BYTES[element]

            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                _, channels, packed = args
                unpacked = [builder.extract_value(packed, i) for i in range(len(numbers))]

                def lanes_at(index: Any, lanes: int) -> RowLanes:
                    return RowLanes(builder, lanes, element, number=number, index=index, hints=0)

                def part(start: Any, end: Any, lanes: int, sets: int, totals: list[Any]) -> list[Any]:
                    def body(index: Any, *totals: Any) -> Sequence[Any]:
                        made: list[Any] = []
                        for at in range(sets):
                            v = lanes_at(builder.add(index, INT64(at * lanes)), lanes)
                            made += emit(v, totals[at * count : (at + 1) * count], *unpacked)
                        return made

                    return loop(builder, start, end, sets * lanes, body, totals)

                most, whole = (builder.and_(channels, INT64(-vector * sets)) for sets in (_UNROLLED, 1))
                zeros = [lanes_at(INT64(0), vector).zero()] * (_UNROLLED * count)
                found = part(INT64(0), most, vector, _UNROLLED, zeros)
                while len(found) > count:
                    half = len(found) // 2
                    found = [builder.fadd(p, q) for p, q in zip(found[:half], found[half:], strict=True)]
                found = part(most, whole, vector, 1, found)
                found = part(whole, channels, 1, 1, [_total(builder, value) for value in found])
                doubles = [value if value.type is DOUBLE else builder.fpext(value, DOUBLE) for value in found]
                return context.make_tuple(builder, signature.return_type, doubles)

            return types.UniTuple(types.float64, count)(data, channels, numbers), generate

        return run

    return decorated


@_summed(1)
def _squares(v: RowLanes, totals: Sequence[Any], x: Any) -> Sequence[Any]:
    value = v.load(x)
    return [v.multiply_add(value, value, totals[0])]


@_summed(1)
def _added_squares(v: RowLanes, totals: Sequence[Any], x: Any, residual: Any, s: Any) -> Sequence[Any]:
    v.store(v.add(v.load(x), v.load(residual)), s)
    value = v.load(s)  # as it was rounded
    return [v.multiply_add(value, value, totals[0])]


@_summed(2)
def _products(v: RowLanes, totals: Sequence[Any], x: Any, dy: Any, weight: Any, offset: Any) -> Sequence[Any]:
    value = v.load(x)
    g = v.multiply(v.load(dy), _factor(v, weight, offset))
    return [v.multiply_add(value, value, totals[0]), v.multiply_add(g, value, totals[1])]


@row(RowLanes, (0, STREAM))
def _normed(v: RowLanes, s: Any, weight: Any, out: Any, scale: Any, offset: Any) -> None:
    v.store(v.multiply(v.load(s), _spread(v, scale), _factor(v, weight, offset)), out)


@row(RowLanes, (0, STREAM))
def _gradient(
    v: RowLanes,
    x: Any,
    dy: Any,
    weight: Any,
    out: Any,
    sums: Any,
    scale: Any,  # r
    along: Any,  # r mean(g x)
    offset: Any,
    *ds: Any,  # nothing, or its row
) -> None:
    r, grad = _spread(v, scale), v.load(dy)
    normed, g = v.multiply(v.load(x), r), v.multiply(grad, _factor(v, weight, offset))
    dx = v.multiply(r, v.subtract(g, v.multiply(normed, _spread(v, along))))
    if ds:
        dx = v.add(dx, v.load(ds[0]))
    v.store(dx, out)
    v.write(v.multiply_add(grad, normed, v.read(sums)), sums)


@numba.njit(error_model="numpy")
def _scale(squares: float, width: int, eps: float) -> float:
    """1 / sqrt(mean + eps); infinite where that is 0."""
    return 1.0 / math.sqrt(squares / width + eps)


@_njit
def _row_at(data: Any, name: int, place: int) -> int:
    """Address of a row of an input."""
    batch, t = place // field(data, AT.time), place % field(data, AT.time)
    return field(data, name) + (batch * field(data, name + 1) + t * field(data, name + 2)) * data_bytes(data)  # type: ignore[no-any-return]


@_njit
def _forward_row(data: Any, place: int, item: int) -> None:
    width, out = field(data, AT.width), field(data, AT.out) + place * field(data, AT.width) * data_bytes(data)
    source = _row_at(data, AT.x, place)
    scale = _scale(_squares(data, width, (source,))[0], width, _double(field(data, AT.eps)))
    numbers = (source, field(data, AT.weight), out, scale, _double(field(data, AT.offset)))
    _normed(data, field(data, AT.stream), width, numbers)


@_njit
def _added_row(data: Any, place: int, item: int) -> None:
    width, step = field(data, AT.width), place * field(data, AT.width) * data_bytes(data)
    source = field(data, AT.s) + step
    squares = _added_squares(data, width, (_row_at(data, AT.x, place), _row_at(data, AT.residual, place), source))
    scale = _scale(squares[0], width, _double(field(data, AT.eps)))
    numbers = (source, field(data, AT.weight), field(data, AT.out) + step, scale, _double(field(data, AT.offset)))
    _normed(data, field(data, AT.stream), width, numbers)


@_njit
def _backward_row(data: Any, place: int, item: int) -> None:
    width, out = field(data, AT.width), field(data, AT.out) + place * field(data, AT.width) * data_bytes(data)
    sums = field(data, AT.sums) + item * width * wide_bytes(data)
    x, dy, offset = _row_at(data, AT.x, place), _row_at(data, AT.dy, place), _double(field(data, AT.offset))
    squares, product = _products(data, width, (x, dy, field(data, AT.weight), offset))
    scale = _scale(squares, width, _double(field(data, AT.eps)))
    numbers = (x, dy, field(data, AT.weight), out, sums, scale, scale * (product / width), offset)
    if field(data, AT.ds) == 0:
        _gradient(data, field(data, AT.stream), width, numbers)
    else:
        _gradient(data, field(data, AT.stream), width, (*numbers, _row_at(data, AT.ds, place)))


def _pieces_of(of_row: Any) -> Any:
    """A numba function of the pointer that takes pieces of rows and runs ``of_row`` on every row of them."""

    @named(f"{of_row.py_func.__qualname__}_of_pieces")
    def pieces(data: Any) -> None:
        item = take(data, 0)
        while item < field(data, AT.items):
            first = item * field(data, AT.piece)
            for place in range(first, min(first + field(data, AT.piece), field(data, AT.rows))):
                of_row(data, place, item)
            item = take(data, 0)
        finish(data)

    return pieces


_forward, _added, _backward = _pieces_of(_forward_row), _pieces_of(_added_row), _pieces_of(_backward_row)


def forward(data: Any) -> None:
    """y."""
    _forward(data)


def forward_added(data: Any) -> None:
    """s and y."""
    _added(data)


def backward(data: Any) -> None:
    """dx, and the sums of every piece."""
    _backward(data)
