"""What the kernels of the native variants do to a query's row; their fields are in _numba_fields.py.

A row of scores, of queries, of output is float32 and contiguous; loops over it become vector instructions.
The G heads that share a key head are rows of one block. The keys that a query sees are one range, first_t .. e_t, so
that there are no masks: scores outside count as -3e38, whose power is 0.

Scores are in base 2: rows are scaled by scale log2(e), or with a softcap by 2 scale log2(e) / softcap, so that
tanh(s) = 1 - 2 / (2^s + 1) needs no further factor.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from typing import Any

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops._native import FLOAT, INT32, Lanes, intrinsic
from griffin_kernels.ops.local_attention import _numba_fields
from griffin_kernels.ops.local_attention._numba_fields import AT, at, floats, ints, rounded_up, shorts

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, str(_numba_fields.__file__))
"""Sources of what is here, besides _native.py."""

LANES = 64
"""Rows of scores are treated in whole multiples of this many."""

SUMS = {"reassoc", "contract", "nsz"}
MAXIMA = {"reassoc", "nnan", "nsz"}

HIDDEN = -3e38
"""A score that does not count: its power is 0."""
LAST_POWER = 125.0
"""Powers of less than its negative count as 0."""
POWER_TERMS = (
    1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1,
    6.931472028550421e-1, 1.0,
)  # fmt: skip
"""2^r for |r| <= 1/2 as a polynomial, highest power first: that of Cephes' exp2f."""
ROUND_TO = 1.5 * 2.0**23
"""Added to what is small it rounds to an integer, which is then in the lowest bits."""
STRAIGHT = 30.0
"""Beyond it, tanh is 1: scores that are to be bent are cut there."""
_LN2 = 0.6931471805599453


@intrinsic
def is_half(typing: Any, data: Any) -> Any:
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


@_njit(fastmath=SUMS)
def dot(p: Any, q: Any, count: int) -> float:
    total = _f32(0)
    for i in range(count):
        total += p[i] * q[i]
    return total


@_njit(fastmath=SUMS)
def sum_of(values: Any, count: int) -> float:
    total = _f32(0)
    for i in range(count):
        total += values[i]
    return total


@_njit(fastmath=MAXIMA)
def largest_of(values: Any, count: int) -> float:
    largest = _f32(HIDDEN)
    for i in range(count):
        largest = max(largest, values[i])
    return largest


@_njit(fastmath={"contract"})
def _power(x: float) -> float:
    """2^x for x <= 125; 0 below -125. 2^n 2^r with |r| <= 1/2."""
    # NaN, which is not below anything, stays
    bounded = _f32(-LAST_POWER) if x < _f32(-LAST_POWER) else x
    shifted = bounded + _f32(ROUND_TO)
    r = bounded - (shifted - _f32(ROUND_TO))
    p = _f32(POWER_TERMS[0]) * r + _f32(POWER_TERMS[1])
    p = p * r + _f32(POWER_TERMS[2])
    p = p * r + _f32(POWER_TERMS[3])
    p = p * r + _f32(POWER_TERMS[4])
    p = p * r + _f32(POWER_TERMS[5])
    p = p * r + _f32(POWER_TERMS[6])
    return _f32(0) if x < _f32(-LAST_POWER) else _times_power(p, shifted)


@_njit(fastmath={"contract"})
def _powers(values: Any, less: float, count: int) -> None:
    """values = 2^(values - less), in place."""
    for i in range(count):
        values[i] = _power(values[i] - less)


@_njit(fastmath={"contract"})
def _bend(values: Any, cap: float, count: int) -> None:
    """values = cap tanh(values log(2) / 2), in place."""
    for i in range(count):
        x = _f32(-STRAIGHT) if values[i] < _f32(-STRAIGHT) else values[i]
        x = _f32(STRAIGHT) if x > _f32(STRAIGHT) else x
        values[i] = cap - _f32(2) * cap / (_power(x) + _f32(1))


@_njit
def _hide(values: Any, begin: int, end: int, width: int) -> None:
    """Scores outside begin .. end - 1 of ``width`` do not count; ``begin`` may lie beyond them."""
    for i in range(min(begin, width)):
        values[i] = _f32(HIDDEN)
    for i in range(end, width):
        values[i] = _f32(HIDDEN)


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
def clear(values: Any, begin: int, end: int) -> None:
    for i in range(begin, end):
        values[i] = _f32(0)


@_njit
def scale(values: Any, factor: float, count: int) -> None:
    for i in range(count):
        values[i] *= factor


@_njit
def read_row(data: Any, address: int, index: int, target: int, factor: float, count: int) -> None:
    """target = factor times ``count`` data elements from ``index``."""
    out = floats(target, 0)
    if is_half(data):
        # bfloat16 is the upper half of a float32
        source, bits = shorts(address, index), ints(target, 0)
        for j in range(count):
            bits[j] = numba.int32(source[j]) << numba.int32(16)
        for j in range(count):
            out[j] *= factor
    else:
        row = floats(address, index)
        for j in range(count):
            out[j] = factor * row[j]


@_njit
def copy_row(address: int, index: int, target: int, count: int, whole: int) -> None:
    """``count`` bfloat16 as they are, zeros up to ``whole``."""
    source, out = shorts(address, index), shorts(target, 0)
    for j in range(count):
        out[j] = source[j]
    for j in range(count, whole):
        out[j] = numba.uint16(0)


@intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """Bits of float32 rounded to bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Lanes(builder, 1).rounded_to_bfloat16(args[0])

    return types.uint16(types.float32), generate


@_njit
def write_row(data: Any, address: int, index: int, source: Any, factor: float, count: int) -> None:
    """Data elements from ``index`` = factor source."""
    if is_half(data):
        halves = shorts(address, index)
        for j in range(count):
            halves[j] = _rounded(factor * source[j])
    else:
        row = floats(address, index)
        for j in range(count):
            row[j] = factor * source[j]


@_njit
def shift_of(top: float) -> float:
    """What is subtracted from a row's scores. Weights of a row that has seen nothing yet are 0."""
    return max(top, _f32(0.5 * HIDDEN))


@_njit
def shrink(f: Any, shift: float, r: int, largest: Any, total: Any, out: Any) -> None:
    """What came before of row r counts less where its scores are now less ``shift``."""
    if total[r] > 0:
        shrunk = _power(largest[r] - shift)
        total[r] *= shrunk
        scale(out, shrunk, f[AT.wide])


@_njit
def weigh(
    data: Any,
    f: Any,
    scores: int,
    weights: int,
    place: int,
    seen: int,
    after: int,
    count: int,
    r: int,
    largest: Any,
    total: Any,
    out: Any,
) -> None:
    """A row of ``count`` scores becomes weights, those outside seen .. after - 1 zero; what came before is scaled down.

    scores, weights: addresses of arrays; place: of the row in either. Weights are data where products are of pairs.
    largest, total: of every row so far, this being row r. out: weighted values of the row so far.
    """
    whole, values = rounded_up(count, LANES), floats(scores, place)
    if f[AT.pairs]:
        scale(values, floats(f[AT.factors], 0)[0], whole)
    if f[AT.capped]:
        _bend(values, floats(f[AT.factors], 1)[0], whole)
    _hide(values, max(seen, 0), min(max(after, 0), count), whole)
    top = max(largest[r], largest_of(values, whole))
    shift = shift_of(top)
    _powers(values, shift, whole)
    shrink(f, shift, r, largest, total, out)
    total[r] += sum_of(values, whole)
    largest[r] = top
    if f[AT.pairs]:
        write_row(data, weights, place, values, _f32(1), whole)


@_njit
def write_weighted(
    data: Any, f: Any, batch: int, t: int, head: int, row: Any, largest: float, total: float, blind: bool
) -> None:
    """out and lse of a query, 0 and -inf of one that is blind."""
    if blind:
        clear(row, 0, f[AT.d])
        largest, total = _f32(-math.inf), _f32(1)
    write_row(data, f[AT.out], at(f, AT.out, batch, t, head), row, _f32(1) / total, f[AT.d])
    if f[AT.lse]:
        lse = floats(f[AT.lse], (batch * f[AT.shared] * f[AT.group] + head) * f[AT.time] + t)
        lse[0] = _f32(_LN2) * largest + math.log(total)


@_njit
def read_gradient(data: Any, f: Any, batch: int, t: int, head: int, upstream: int, query: int) -> tuple[float, float]:
    """dout to ``upstream`` and q, scaled, to ``query``; delta, and lse in base 2."""
    d = f[AT.d]
    read_row(data, f[AT.dout], at(f, AT.dout, batch, t, head), upstream, _f32(1), d)
    # the query's place holds out for a moment
    read_row(data, f[AT.out], at(f, AT.out, batch, t, head), query, _f32(1), d)
    delta = dot(floats(upstream, 0), floats(query, 0), d)
    read_row(data, f[AT.q], at(f, AT.q, batch, t, head), query, floats(f[AT.factors], 0)[0], d)
    place = (batch * f[AT.shared] * f[AT.group] + head) * f[AT.time] + t
    if f[AT.dlse]:
        delta -= floats(f[AT.dlse], place)[0]
    lse = floats(f[AT.lse], place)[0]
    return delta, _f32(1 / _LN2) * lse


@_njit
def slope(f: Any, scores: Any, products: Any, lse: float, delta: float, count: int) -> None:
    """A row of scores becomes weights, and one of products of dout and v the scores' gradient."""
    whole = rounded_up(count, LANES)
    if f[AT.capped]:
        cap = floats(f[AT.factors], 1)[0]
        _bend(scores, cap, whole)
        _bent_slopes(scores, products, lse, delta, _f32(1) / cap, whole)
    else:
        _slopes(scores, products, lse, delta, whole)


@_njit
def clear_unseen(values: Any, seen: int, after: int, count: int) -> None:
    """Zeros outside seen .. after - 1 of ``count``."""
    clear(values, 0, min(max(seen, 0), count))
    clear(values, max(after, 0), count)


@_njit
def write_dq(data: Any, f: Any, batch: int, t: int, head: int, row: Any) -> None:
    """dq of a query."""
    index = ((batch * f[AT.time] + t) * f[AT.shared] * f[AT.group] + head) * f[AT.d]
    write_row(data, f[AT.dq], index, row, floats(f[AT.factors], 4)[0], f[AT.d])
