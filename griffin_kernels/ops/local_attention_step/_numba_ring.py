"""The compiled code of numba.split: attention of one token to a part of its ring, read once where it lies.

A kernel is a C function of one pointer, to a block of 64-bit integers (addresses, strides, sizes; see Fields). Work
items, a part of one row's ring for one key head, are taken from a shared counter in that block by however many threads
call it. Every item leaves its weighted values, their maximum score and their sum of weights, to be joined afterwards.
bfloat16 is widened a row at a time into a scratch that stays in the first-level cache.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops._native import places, take
from griffin_kernels.ops.local_attention import _numba_rows
from griffin_kernels.ops.local_attention._numba_fields import Headed, at, fields_of, floats, ints, longs, shorts
from griffin_kernels.ops.local_attention._numba_rows import MAXIMA, SUMS, dot, is_half, sum_of

_njit: Any = numba.njit
_f32: Any = numba.float32
_i32: Any = numba.int32


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements."""

    k: Headed  # data [P, W, Hkv, d], channels contiguous
    v: Headed
    items: int  # B * Hkv * parts, in that order
    parts: int
    part: int  # slots of a part
    window: int
    shared: int  # Hkv
    group: int  # G = Hq / Hkv
    d: int
    positions: int  # int64 [B]
    q: int  # float32 [B, Hkv, G, d], scaled
    out: int  # float32 [items, G, d]: weighted values
    largest: int  # float32 [items, G]: largest score
    total: int  # float32 [items, G]: sum of weights
    scratch: int  # float32 [items, (G + 1) * part + 4 * d]
    capped: int  # 1: scores are bent
    softcap: int  # float32 [1]
    rings: int  # int64 [B], which of the P rings a row works on, negative for none; 0 in place of 0 .. B - 1
    k_new: int  # data [B, Hkv, d], contiguous: the new token, which goes into its slot first
    v_new: int


AT = places(Fields)

FILES = (__file__, *_numba_rows.FILES)
"""Sources that the kernel is made from, besides _native.py."""


@_njit(fastmath=SUMS)
def _add_rows(out: Any, a: Any, b: Any, c: Any, e: Any, wa: float, wb: float, wc: float, we: float, count: int) -> None:
    """out += wa a + wb b + wc c + we e."""
    for j in range(count):
        out[j] += wa * a[j] + wb * b[j] + wc * c[j] + we * e[j]


@_njit(fastmath=MAXIMA)
def largest_score(values: Any, count: int) -> float:
    largest = values[0]
    for i in range(count):
        largest = max(largest, values[i])
    return largest


@_njit(fastmath={"contract"})
def exp_of(values: Any, powers: Any, as_floats: Any, factor: float, less: float, count: int) -> None:
    """values = exp(factor (values - less)) in place. ``powers``, ``as_floats``: one scratch, as integers and as floats.

    2^n e^r with |r| <= log(2) / 2; the polynomial for e^r is that of Cephes. Below -87 it counts as -87, e^-87 being
    the smallest power that is no denormal.
    """
    for i in range(count):
        x = (values[i] - less) * factor
        x = _f32(-87) if x < _f32(-87) else x
        x = _f32(87) if x > _f32(87) else x
        n = _i32(x * _f32(1.44269504) + _f32(1000.5)) - _i32(1000)  # floor(.. + 0.5)
        m = _f32(n)
        r = x - m * _f32(0.693359375)
        r = r + m * _f32(2.12194440e-4)
        p = _f32(1.9875691500e-4) * r + _f32(1.3981999507e-3)
        p = p * r + _f32(8.3334519073e-3)
        p = p * r + _f32(4.1665795894e-2)
        p = p * r + _f32(1.6666665459e-1)
        p = p * r + _f32(5.0000001201e-1)
        values[i] = p * r * r + r + _f32(1)
        powers[i] = (n + _i32(127)) << _i32(23)
    for i in range(count):
        values[i] = values[i] * as_floats[i]


@_njit
def _widen(source: Any, target: Any, count: int) -> None:
    """bfloat16 is the upper half of a float32."""
    for j in range(count):
        target[j] = _i32(source[j]) << _i32(16)


@_njit
def widen_row(source: int, index: int, target: int, count: int) -> None:
    """``count`` bfloat16 from element ``index`` to a row of float32; both given by address."""
    _widen(shorts(source, index), ints(target, 0), count)


@_njit
def _row(data: Any, address: int, index: int, scratch: int, slot: int, count: int) -> Any:
    """A row of ``count`` data elements as float32: where it lies, or widened into row ``slot`` of the scratch."""
    if is_half(data):
        _widen(shorts(address, index), ints(scratch, slot * count), count)
        return floats(scratch, slot * count)
    return floats(address, index)


@_njit
def copy_elements(data: Any, source: int, i: int, target: int, j: int, count: int) -> None:
    """``count`` data elements from element i of one array to element j of another."""
    if is_half(data):
        halves, into_halves = shorts(source, i), shorts(target, j)
        for n in range(count):
            into_halves[n] = halves[n]
    else:
        words, into = ints(source, i), ints(target, j)
        for n in range(count):
            into[n] = words[n]


def attend(data: Any) -> None:
    """Put the new token into its slot; weighted values, largest score and sum of weights of every item."""
    f = fields_of(data)
    parts, part, window, shared = f[AT.parts], f[AT.part], f[AT.window], f[AT.shared]
    group, d, k_step, v_step = f[AT.group], f[AT.d], f[AT.k + 2], f[AT.v + 2]
    item = take(data, 0)
    while item < f[AT.items]:
        head = item // parts
        batch, key_head, begin = head // shared, head % shared, item % parts * part
        position = longs(f[AT.positions], batch)[0]
        ring = longs(f[AT.rings], batch)[0] if f[AT.rings] else batch
        count = min(position + 1, window, begin + part) - begin if ring >= 0 else 0
        out = floats(f[AT.out], item * group * d)
        largest, total = floats(f[AT.largest], item * group), floats(f[AT.total], item * group)
        for j in range(group * d):
            out[j] = _f32(0)
        if count > 0:
            scratch = f[AT.scratch] + item * ((group + 1) * part + 4 * d) * 4
            powers = scratch + group * part * 4
            rows = powers + part * 4
            k, v = at(f, AT.k, ring, begin, key_head), at(f, AT.v, ring, begin, key_head)
            new = position % window - begin
            if 0 <= new < count:
                # no other item reads this slot
                copy_elements(data, f[AT.k_new], head * d, f[AT.k], k + new * k_step, d)
                copy_elements(data, f[AT.v_new], head * d, f[AT.v], v + new * v_step, d)
            for i in range(count):
                row = _row(data, f[AT.k], k + i * k_step, rows, 0, d)
                for g in range(group):
                    floats(scratch, g * part + i)[0] = dot(floats(f[AT.q], (head * group + g) * d), row, d)
            for g in range(group):
                scores = floats(scratch, g * part)
                if f[AT.capped]:
                    cap = floats(f[AT.softcap], 0)[0]
                    # tanh(x) = 1 - 2 / (exp(2 x) + 1)
                    exp_of(scores, ints(powers, 0), floats(powers, 0), _f32(2) / cap, _f32(0), count)
                    for i in range(count):
                        scores[i] = cap - _f32(2) * cap / (scores[i] + _f32(1))
                top = largest_score(scores, count)
                exp_of(scores, ints(powers, 0), floats(powers, 0), _f32(1), top, count)
                largest[g], total[g] = top, sum_of(scores, count)
            for i in range(0, count, 4):
                # past the end: the last row again, with no weight
                last = count - 1
                a = _row(data, f[AT.v], v + i * v_step, rows, 0, d)
                b = _row(data, f[AT.v], v + min(i + 1, last) * v_step, rows, 1, d)
                c = _row(data, f[AT.v], v + min(i + 2, last) * v_step, rows, 2, d)
                e = _row(data, f[AT.v], v + min(i + 3, last) * v_step, rows, 3, d)
                for g in range(group):
                    w = floats(scratch, g * part + i)
                    wb = w[1] if i + 1 < count else _f32(0)
                    wc = w[2] if i + 2 < count else _f32(0)
                    we = w[3] if i + 3 < count else _f32(0)
                    _add_rows(floats(f[AT.out], (item * group + g) * d), a, b, c, e, w[0], wb, wc, we, d)
        else:
            for g in range(group):
                largest[g], total[g] = _f32(-3e38), _f32(0)
        item = take(data, 0)
