"""What the compiled code of the numba variants of local_attention does to rows: a row of scores, of queries, of output.

A row is float32 and contiguous; loops over it become vector instructions. Rows of data are read and written by the
pointer's type: float32, or uint16 for bfloat16. Scores are in base 2.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops._native import FLOAT, INT32, INT64, Lanes, intrinsic

_njit: Any = numba.njit
_f32: Any = numba.float32

LANES = 64
"""Rows of scores are treated in whole multiples of this many."""

_SUM = {"reassoc", "contract", "nsz"}
_LARGEST = {"reassoc", "nnan", "nsz"}

_HIDDEN = -3e38
"""A score that does not count: its power is 0."""
_LN2 = 0.6931471805599453


def _array_at(kind: Any) -> Any:
    """A numba function ``(address, index) -> pointer`` to element ``index`` of an array of ``kind``."""

    @intrinsic
    def at(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(kind)
            return builder.gep(builder.inttoptr(args[0], element.as_pointer()), [args[1]])

        return types.CPointer(kind)(types.int64, types.int64), generate

    return at


_floats, _ints, _shorts, _longs = (_array_at(k) for k in (types.float32, types.int32, types.uint16, types.int64))


@intrinsic
def _address(typing: Any, data: Any) -> Any:
    """The address that a pointer holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], INT64)

    return types.int64(data), generate


@intrinsic
def _is_half(typing: Any, data: Any) -> Any:
    """Whether data is bfloat16; known when compiled."""
    half = int(data.dtype is types.uint16)
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), half)


@intrinsic
def _times_power(typing: Any, value: Any, shifted: Any) -> Any:
    """value 2^n, for ``shifted`` = n + 1.5 2^23, whose lowest bits are n: added to value's exponent."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, power = (builder.bitcast(arg, INT32) for arg in args)
        return builder.bitcast(builder.add(bits, builder.shl(power, ir.Constant(INT32, 23))), FLOAT)

    return types.float32(types.float32, types.float32), generate


@_njit(fastmath=_SUM)
def _dot(p: Any, q: Any, count: int) -> float:
    total = _f32(0)
    for i in range(count):
        total += p[i] * q[i]
    return total


@_njit(fastmath=_SUM)
def _sum(values: Any, count: int) -> float:
    total = _f32(0)
    for i in range(count):
        total += values[i]
    return total


@_njit(fastmath=_LARGEST)
def _largest(values: Any, count: int) -> float:
    largest = _f32(_HIDDEN)
    for i in range(count):
        largest = max(largest, values[i])
    return largest


@_njit(fastmath={"contract"})
def _power(x: float) -> float:
    """2^x for x <= 125; 0 below -125. 2^n 2^r with |r| <= 1/2; the polynomial is that of Cephes' exp2f."""
    # adding 1.5 2^23 rounds to an integer
    # and NaN, which is not below anything, stays
    bounded = _f32(-125) if x < _f32(-125) else x
    shifted = bounded + _f32(12582912.0)
    r = bounded - (shifted - _f32(12582912.0))
    p = _f32(1.535336188319500e-4) * r + _f32(1.339887440266574e-3)
    p = p * r + _f32(9.618437357674640e-3)
    p = p * r + _f32(5.550332471162809e-2)
    p = p * r + _f32(2.402264791363012e-1)
    p = p * r + _f32(6.931472028550421e-1)
    p = p * r + _f32(1)
    return _f32(0) if x < _f32(-125) else _times_power(p, shifted)


@_njit(fastmath={"contract"})
def _powers(values: Any, less: float, count: int) -> None:
    """values = 2^(values - less), in place."""
    for i in range(count):
        values[i] = _power(values[i] - less)


@_njit(fastmath={"contract"})
def _bend(values: Any, cap: float, count: int) -> None:
    """values = cap tanh(values log(2) / 2), in place."""
    for i in range(count):
        # beyond 30, tanh is 1
        x = _f32(-30) if values[i] < _f32(-30) else values[i]
        x = _f32(30) if x > _f32(30) else x
        values[i] = cap - _f32(2) * cap / (_power(x) + _f32(1))


@_njit
def _hide(values: Any, begin: int, end: int, width: int) -> None:
    """Scores outside begin .. end - 1 of ``width`` do not count."""
    for i in range(begin):
        values[i] = _f32(_HIDDEN)
    for i in range(end, width):
        values[i] = _f32(_HIDDEN)


@_njit(fastmath={"contract"})
def _slopes(scores: Any, products: Any, lse: float, delta: float, count: int) -> None:
    """scores = p = 2^(scores - lse), products = p (products - delta), both in place."""
    for i in range(count):
        p = _power(scores[i] - lse)
        products[i] = p * (products[i] - delta)
        scores[i] = p


@_njit(fastmath={"contract"})
def _bent_slopes(scores: Any, products: Any, lse: float, delta: float, per_cap: float, count: int) -> None:
    """Likewise, times the slope of what bent the scores."""
    for i in range(count):
        p, bent = _power(scores[i] - lse), scores[i] * per_cap
        products[i] = p * (products[i] - delta) * (_f32(1) - bent * bent)
        scores[i] = p


@_njit
def _clear(values: Any, begin: int, end: int) -> None:
    for i in range(begin, end):
        values[i] = _f32(0)


@_njit
def _scale(values: Any, factor: float, count: int) -> None:
    for i in range(count):
        values[i] *= factor


@_njit
def _read_row(data: Any, address: int, index: int, target: int, factor: float, count: int) -> None:
    """target = factor times ``count`` data elements from ``index``."""
    out = _floats(target, 0)
    if _is_half(data):
        # bfloat16 is the upper half of a float32
        source, bits = _shorts(address, index), _ints(target, 0)
        for j in range(count):
            bits[j] = numba.int32(source[j]) << numba.int32(16)
        for j in range(count):
            out[j] *= factor
    else:
        row = _floats(address, index)
        for j in range(count):
            out[j] = factor * row[j]


@intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """Bits of float32 rounded to bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Lanes(builder, 1).rounded_to_bfloat16(args[0])

    return types.uint16(types.float32), generate


@_njit
def _write_row(data: Any, address: int, index: int, source: Any, factor: float, count: int) -> None:
    """Data elements from ``index`` = factor source."""
    if _is_half(data):
        halves = _shorts(address, index)
        for j in range(count):
            halves[j] = _rounded(factor * source[j])
    else:
        row = _floats(address, index)
        for j in range(count):
            row[j] = factor * source[j]
