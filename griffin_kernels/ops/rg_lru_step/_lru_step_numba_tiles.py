"""Inner loops of the native one-token RG-LRU, emitted as vectors: gate products and what follows them.

A product keeps some batch rows by some vectors of columns in registers and walks down the weights, which are read where
they lie, in the data's dtype: several vectors of columns at a time are whole cache lines, and a row of weights is read
once for up to six batch rows.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from numba import types

from griffin_kernels.ops import _gelu
from griffin_kernels.ops._native import FLOAT, INT64, Lanes, intrinsic, lanes, loop, registers
from griffin_kernels.ops.rg_lru import _lru_numba_tiles
from griffin_kernels.ops.rg_lru._lru_numba_tiles import _exp2, _gates, _sigmoid


def _tiles() -> tuple[tuple[int, ...], int, int]:
    """(batch rows of a tile, largest first; vectors of columns of a tile; the same for one row alone)."""
    return ((6, 4, 2, 1), 4, 16) if registers() == 32 else ((4, 2, 1), 2, 8)


class Product(NamedTuple):
    """Z = A W + bias for batch rows A [rows, depth] floats, W [depth, columns] data, bias [columns] data, Z floats.

    Addresses; steps are bytes from row to row.
    """

    rows: Any
    depth: Any
    columns: Any
    a: Any
    a_step: Any
    w: Any
    w_step: Any
    bias: Any
    z: Any
    z_step: Any


@intrinsic
def product(typing: Any, data: Any, numbers: Any) -> Any:
    """``(data, numbers)``: see Product for what ``numbers`` holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        p = Product(*(builder.extract_value(args[1], i) for i in range(len(Product._fields))))
        heights, many, alone = _tiles()
        with builder.if_else(builder.icmp_signed("==", p.rows, INT64(1))) as (one, more):
            with one:
                _columns(builder, data.dtype, p, (alone, many, 1), (1,))
            with more:
                _columns(builder, data.dtype, p, (many, 1), heights)
        return context.get_dummy_value()

    return types.void(data, numbers), generate


def _columns(builder: Any, element: Any, p: Product, vectors: Sequence[int], heights: Sequence[int]) -> None:
    """All columns: tiles of so many vectors, the widest first, then single columns."""
    done = INT64(0)
    for count, step in (*((lanes(), v) for v in vectors), (1, 1)):
        v = Lanes(builder, count, element)
        left = builder.sub(p.columns, done)
        end = builder.add(done, builder.sub(left, builder.srem(left, INT64(count * step))))

        def body(column: Any, v: Lanes = v, step: int = step) -> Sequence[Any]:
            _rows(v, p, column, step, heights)
            return ()

        loop(builder, done, end, count * step, body)
        done = end


def _rows(v: Lanes, p: Product, column: Any, vectors: int, heights: Sequence[int]) -> None:
    """All batch rows of some vectors of columns."""
    b, size = v.builder, 4 if v.element is types.float32 else 2
    offset, done = b.mul(column, INT64(size)), INT64(0)
    w, bias = b.add(p.w, offset), b.add(p.bias, offset)
    z = b.add(p.z, b.mul(column, INT64(4)))
    for height in heights:

        def body(first: Any, height: int = height) -> Sequence[Any]:
            begins = [v.load(b.add(bias, INT64(size * v.count * c))) for c in range(vectors)]
            start = b.add(p.a, b.mul(first, p.a_step))

            def step(k: Any, w: Any, *sums: Any) -> Sequence[Any]:
                place = b.add(start, b.mul(k, INT64(4)))
                weights = [v.load(b.add(w, INT64(size * v.count * c))) for c in range(vectors)]
                results = []
                for r in range(height):
                    at = b.add(place, b.mul(p.a_step, INT64(r)))
                    factor = v.broadcast(b.load(b.inttoptr(at, FLOAT.as_pointer()), align=4))
                    for c in range(vectors):
                        results.append(v.multiply_add(factor, weights[c], sums[r * vectors + c]))
                return b.add(w, p.w_step), *results

            _, *sums = loop(b, INT64(0), p.depth, 1, step, (w, *begins * height))
            for r in range(height):
                target = b.add(z, b.mul(b.add(first, INT64(r)), p.z_step))
                for c in range(vectors):
                    v.write(sums[r * vectors + c], b.add(target, INT64(4 * v.count * c)))
            return ()

        left = b.sub(p.rows, done)
        end = b.add(done, b.sub(left, b.srem(left, INT64(height))))
        loop(b, done, end, height, body)
        done = end


def _softplus(v: Lanes, value: Any) -> Any:
    """log(1 + exp(value)), with its relative accuracy kept where exp(value) is far below 1."""
    b = v.builder
    size = b.select(b.fcmp_ordered("<", value, v.constant(0.0)), value, b.fneg(value))
    log2 = v.at_least(v.multiply(size, v.constant(1 / math.log(2))), -126.0)
    shifted = v.add(log2, v.constant(_lru_numba_tiles._ROUND))
    scale, rest = _exp2(v, shifted, v.subtract(log2, v.subtract(shifted, v.constant(_lru_numba_tiles._ROUND))))
    w = v.multiply_add(scale, rest, scale)
    # log(1 + w) = 2 artanh(t), t = w / (2 + w), a series in t^2 <= 1/9
    t = v.divide(w, v.add(w, v.constant(2.0)))
    square = v.multiply(t, t)
    series = v.constant(1 / 15)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        series = v.multiply_add(series, square, v.constant(1 / odd))
    return v.multiply_add(v.multiply(v.constant(2.0), t), series, v.at_least(value, 0.0))


def _per_channel(emit: Any) -> Any:
    """A numba function ``(data, channels, numbers)`` that emits ``emit(lanes, index, *numbers)`` for every vector."""

    @intrinsic
    def run(typing: Any, data: Any, channels: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            unpacked = [builder.extract_value(args[2], i) for i in range(len(numbers))]
            whole = builder.and_(args[1], INT64(-lanes()))
            for start, end, count in ((INT64(0), whole, lanes()), (whole, args[1], 1)):
                v = Lanes(builder, count, data.dtype)

                def piece(index: Any, v: Lanes = v) -> Sequence[Any]:
                    emit(v, index, *unpacked)
                    return ()

                loop(builder, start, end, count, piece)
            return context.get_dummy_value()

        return types.void(data, channels, numbers), generate

    return run


def _float_at(v: Lanes, start: Any, index: Any) -> Any:
    return v.builder.add(start, v.builder.mul(index, INT64(4)))


def _data_at(v: Lanes, start: Any, index: Any) -> Any:
    return v.builder.add(start, v.builder.mul(index, INT64(4 if v.element is types.float32 else 2)))


@_per_channel
def rates(v: Lanes, index: Any, a_param: Any, rate: Any, factor: Any) -> None:
    """rate = factor softplus(a_param): log2 a = rate r. a_param: data; rate: floats."""
    value = v.multiply(_softplus(v, v.load(_data_at(v, a_param, index))), v.broadcast(factor))
    v.write(value, _float_at(v, rate, index))


def _gelu_of(v: Lanes, y: Any) -> Any:
    cubic = v.multiply_add(v.multiply(y, y), v.constant(_gelu.CUBIC), v.constant(1.0))
    share, _ = _sigmoid(v, v.multiply(y, cubic, v.constant(2 * _gelu.SCALE)))
    return v.multiply(y, share)


def _advance(gated: bool, begins: bool) -> Any:
    """The state of one batch row and the output.

    gated: the output is the state times gelu(y). begins: a document begins: the state before counts as 0, m as 1.
    """

    @_per_channel
    def advance(v: Lanes, index: Any, u: Any, z_i: Any, z_r: Any, rate: Any, h: Any, y: Any, out: Any) -> None:
        entering, state = v.read(_float_at(v, u, index)), _float_at(v, h, index)
        argument = v.read(_float_at(v, z_i, index))
        if begins:
            new = v.multiply(_sigmoid(v, argument)[0], entering)
        else:
            gates = _gates(v, argument, v.read(_float_at(v, z_r, index)), v.read(_float_at(v, rate, index)))
            new = v.multiply_add(gates.a, v.read(state), v.multiply(gates.i, entering, gates.m))
        v.write(new, state)
        result = v.multiply(new, _gelu_of(v, v.load(_data_at(v, y, index)))) if gated else new
        v.store(result, _data_at(v, out, index))

    return advance


advance, begin = _advance(False, False), _advance(False, True)
advance_gated, begin_gated = _advance(True, False), _advance(True, True)
