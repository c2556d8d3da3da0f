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

All of it is one file because numba's cache on disk watches only the file of the function that it compiles.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call, misc"

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import extending, types

_intrinsic: Any = extending.intrinsic
_njit: Any = numba.njit
_cfunc: Any = numba.cfunc
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

ROWS = 8
"""Rows of a tile: 16 sums of 16 in registers, enough to hide the latency of an addition."""

PANEL = 32
"""Columns of a tile."""

LANES = 64
"""Rows of scores are treated in whole multiples of this many."""

FACTORS = ("rows", "cap", "dq")
"""Numbers: of q; softcap log2(e); of dq."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_PLACES, _ITEMS, _PIECES, _BLOCK = (_AT[n] for n in ("places", "items", "pieces", "block"))
_TIME, _KEYS, _PADDED, _SHARED, _GROUP = (_AT[n] for n in ("time", "keys", "padded", "shared", "group"))
_D, _WIDE, _TILE, _PITCH = (_AT[n] for n in ("d", "wide", "tile", "pitch"))
_FIRST, _FIRST_BATCH, _Q, _OUT, _LSE = (_AT[n] for n in ("first", "first_batch", "q", "out", "lse"))
_K_ACROSS, _K_DOWN, _V_ACROSS, _V_DOWN = (_AT[n] for n in ("k_across", "k_down", "v_across", "v_down"))
_SCRATCH, _PLACE, _FACTORS, _CAPPED = (_AT[n] for n in ("scratch", "scratch_place", "factors", "capped"))
_DOUT, _DQ, _PART, _REACH, _WINDOW, _DK, _DV = (_AT[n] for n in ("dout", "dq", "part", "reach", "window", "dk", "dv"))

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_ELEMENTS = {torch.float32: types.float32, torch.bfloat16: types.uint16}
_SUM = {"reassoc", "contract", "nsz"}
_LARGEST = {"reassoc", "nnan", "nsz"}

_HIDDEN = -3e38
_LN2 = 0.6931471805599453


def _array_at(kind: Any) -> Any:
    """A numba function ``(address, index) -> pointer`` to element ``index`` of an array of ``kind``."""

    @_intrinsic
    def at(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(kind)
            return builder.gep(builder.inttoptr(args[0], element.as_pointer()), [args[1]])

        return types.CPointer(kind)(types.int64, types.int64), generate

    return at


_floats, _ints, _shorts, _longs = (_array_at(k) for k in (types.float32, types.int32, types.uint16, types.int64))


@_intrinsic
def _address(typing: Any, data: Any) -> Any:
    """The address that a pointer holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], _INT64)

    return types.int64(data), generate


@_intrinsic
def _is_half(typing: Any, data: Any) -> Any:
    """Whether data is bfloat16; known when compiled."""
    half = int(data.dtype is types.uint16)
    return types.boolean(data), lambda context, builder, signature, args: ir.Constant(ir.IntType(1), half)


@_intrinsic
def _take(typing: Any, data: Any, index: Any) -> Any:
    """Field ``index``, which it advances: what no other thread gets."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.gep(builder.bitcast(args[0], _INT64.as_pointer()), [args[1]])
        return builder.atomic_rmw("add", counter, ir.Constant(_INT64, 1), "monotonic")

    return types.int64(data, types.int64), generate


@_intrinsic
def _times_power(typing: Any, value: Any, shifted: Any) -> Any:
    """value 2^n, for ``shifted`` = n + 1.5 2^23, whose lowest bits are n: added to value's exponent."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, power = (builder.bitcast(arg, _INT32) for arg in args)
        return builder.bitcast(builder.add(bits, builder.shl(power, ir.Constant(_INT32, 23))), _FLOAT)

    return types.float32(types.float32, types.float32), generate


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_VECTOR = ir.VectorType(_FLOAT, 16)
_PAIRS = ir.VectorType(_BFloat(), 32)


def _multiplier(builder: Any, half: bool) -> tuple[Any, Callable[[Any, Any, Any], Any]]:
    """The type of a vector of factors, and a function (sums, factors, factors) -> sums."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512" if half else "llvm.fma.v16f32"
    factors = _PAIRS if half else _VECTOR
    kind = ir.FunctionType(_VECTOR, [_VECTOR, factors, factors] if half else [_VECTOR, _VECTOR, _VECTOR])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    if half:
        return factors, lambda sums, one, two: builder.call(function, [sums, one, two])
    return factors, lambda sums, one, two: builder.call(function, [one, two, sums])


def _emit_tile(builder: Any, half: bool, add: bool, args: Any) -> None:
    a, a_row, a_step, b, b_step, steps, out, out_row = args
    factors, multiplied = _multiplier(builder, half)
    scalar = _INT32 if half else _FLOAT
    splat = ir.VectorType(scalar, 16)
    rows, halves = range(ROWS), range(PANEL // 16)

    def at(address: Any, kind: Any) -> Any:
        return builder.inttoptr(address, kind.as_pointer())

    places = [
        [builder.add(builder.add(out, builder.mul(out_row, _INT64(r))), _INT64(64 * n)) for n in halves] for r in rows
    ]
    left = [builder.add(a, builder.mul(a_row, _INT64(r))) for r in rows]
    none = ir.Constant(_VECTOR, [0.0] * 16)
    start = [[builder.load(at(places[r][n], _VECTOR), align=4) if add else none for n in halves] for r in rows]
    before, loop, after = builder.block, builder.append_basic_block("steps"), builder.append_basic_block("steps.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    step.add_incoming(_INT64(0), before)
    sums = [[builder.phi(_VECTOR) for _ in halves] for _ in rows]
    b_at, a_at = builder.add(b, builder.mul(b_step, step)), builder.mul(a_step, step)
    right = [builder.load(at(builder.add(b_at, _INT64(64 * n)), factors), align=4) for n in halves]
    following = builder.add(step, _INT64(1))
    step.add_incoming(following, loop)
    undefined = ir.Constant(splat, ir.Undefined)
    found = []
    for r in rows:
        one = builder.load(at(builder.add(left[r], a_at), scalar), align=4)
        one = builder.insert_element(undefined, one, _INT32(0))
        one = builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT32, 16), [0] * 16))
        found.append([multiplied(sums[r][n], builder.bitcast(one, factors), right[n]) for n in halves])
        for n in halves:
            sums[r][n].add_incoming(start[r][n], before)
            sums[r][n].add_incoming(found[r][n], loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for r in rows:
        for n in halves:
            builder.store(found[r][n], at(places[r][n], _VECTOR), align=4)


def _tile_function(add: bool) -> Any:
    """A numba function ``(data, a, a_row, a_step, b, b_step, steps, out, out_row)``.

    out [ROWS, PANEL] = (out +) a [ROWS, steps] @ b [steps, PANEL]: addresses, and bytes from a row or step to the
    next. steps is at least 1. Steps are of pairs of bfloat16 where that is data's dtype.
    """

    @_intrinsic
    def tile(
        typing: Any, data: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, steps: Any, out: Any, out_row: Any
    ) -> Any:
        half = data.dtype is types.uint16

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_tile(builder, half, add, args[1:])
            return context.get_dummy_value()

        return types.void(data, *[types.int64] * 8), generate

    return tile


_set_tile, _add_tile = _tile_function(add=False), _tile_function(add=True)


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


@_intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """Bits of float32 rounded to bfloat16: to nearest, ties to even; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b = builder
        bits = b.bitcast(args[0], _INT32)
        upper = b.lshr(bits, _INT32(16))
        rounded = b.lshr(b.add(b.add(bits, _INT32(0x7FFF)), b.and_(upper, _INT32(1))), _INT32(16))
        # a NaN whose payload is all in the lower half would round to infinity
        value = b.select(b.fcmp_unordered("uno", args[0], args[0]), b.or_(upper, _INT32(0x40)), rounded)
        return b.trunc(value, ir.IntType(16))

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


@_njit
def _copy_row(address: int, index: int, target: int, count: int) -> None:
    """``count`` bfloat16 as they are, and a zero where they are odd."""
    source, out = _shorts(address, index), _shorts(target, 0)
    for j in range(count):
        out[j] = source[j]
    if count % 2:
        out[count] = numba.uint16(0)


@_njit
def _at(f: Any, tensor: int, batch: int, t: int, head: int) -> int:
    """Index of a row of one of the tensors whose strides are fields."""
    return batch * f[tensor + 1] + t * f[tensor + 2] + head * f[tensor + 3]


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
                _set_tile(
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
                _add_tile(data, left, size * pitch, 4, panel, 4 * PANEL, steps, out + 4 * (r * wide + column), 4 * wide)


def attend(data: Any) -> None:
    """out and lse; a block is an item."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch, wide = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH], f[_WIDE]
    half = _is_half(data)
    size = 2 if half else 4
    steps = (d * size + 3) // 4  # of d
    most, earlier = _rounded_up(block * group, ROWS), f[_KEYS] - time
    factor, cap = _floats(f[_FACTORS], 0)[0], _floats(f[_FACTORS], 1)[0]
    queries = f[_SCRATCH] + 4 * _take(data, _PLACES) * f[_PLACE]  # [rows, steps]
    weighted = queries + 4 * most * steps  # [rows, wide]
    scores = weighted + 4 * most * wide  # [rows, pitch]
    weights = scores + 4 * most * pitch if half else scores  # [rows, pitch]
    largest = _floats(scores + 8 * most * pitch, 0)  # [rows]
    total = _floats(scores + 8 * most * pitch, most)  # [rows]
    item = _take(data, 0)
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
        item = _take(data, 0)


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
                _add_tile(_floats(a, 0), left, 4, 4 * pitch, right, b_row, steps, to, 4 * wide)


def gradient(data: Any) -> None:
    """dq, and every item's share of dk and dv; a part of the queries is an item. Products are of float32."""
    f = _longs(_address(data), 0)
    block, time, group, d, pitch, wide = f[_BLOCK], f[_TIME], f[_GROUP], f[_D], f[_PITCH], f[_WIDE]
    most, heads, earlier = _rounded_up(block * group, ROWS), f[_SHARED] * group, f[_KEYS] - time
    factor, cap, factor_dq = _floats(f[_FACTORS], 0)[0], _floats(f[_FACTORS], 1)[0], _floats(f[_FACTORS], 2)[0]
    # rows of a power of two would fall on few lines of the first-level cache
    step = wide + 16
    queries = f[_SCRATCH] + 4 * _take(data, _PLACES) * f[_PLACE]  # [rows, step]
    upstream = queries + 4 * most * step  # [rows, step]
    slopes = upstream + 4 * most * step  # [rows, wide]
    scores = slopes + 4 * most * wide  # [rows, pitch]
    products = scores + 4 * most * pitch  # [rows, pitch]
    delta = _floats(products + 4 * most * pitch, 0)  # [rows]
    lse = _floats(products + 4 * most * pitch, most)  # [rows]
    wide_data = _floats(queries, 0)
    # channels beyond d, and rows beyond a block's
    _clear(wide_data, 0, 2 * most * step)
    item = _take(data, 0)
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
        item = _take(data, 0)


_KERNELS: list[Any] = []
"""Compiled kernels, kept alive as long as their addresses may be called."""


@functools.cache
def compiled(kernel: Callable[[Any], None], dtype: torch.dtype) -> Any:
    """A kernel for data of ``dtype`` as a ctypes function of the address of its FIELDS.

    Compiled on first use and kept on disk: beside this file, in the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    signature = types.void(types.CPointer(_ELEMENTS[dtype]))
    try:
        function = _cfunc(signature, cache=True, nopython=True, error_model="numpy")(kernel)
    except RuntimeError as error:
        # numba's word for "none of these folders can be written": compile again in every process
        if "cannot cache function" not in str(error):
            raise
        function = _cfunc(signature, nopython=True, error_model="numpy")(kernel)
    _KERNELS.append(function)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
