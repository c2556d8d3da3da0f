"""The compiled code of numba.split for several new tokens: a part of a row's keys against all its queries.

A kernel as in local_attention_step/_numba_ring.py. A work item is a part of the keys of one row and key head, in order
of their positions: those before the call from the ring, those of the call from its arguments. An item that has new keys
writes them to their slots, which no item reads. Keys are taken four at a time against four queries at a time, so that
each value loaded takes part in four products in registers. Where some query does not see some key of four, keys are
taken one at a time, each by the queries that see it: what is hidden is multiplied with nothing.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops import _native
from griffin_kernels.ops._native import FLOAT, INT64, Lanes, intrinsic, lanes, places, take
from griffin_kernels.ops.local_attention._numba_fields import Headed, fields_of, floats, ints, longs
from griffin_kernels.ops.local_attention._numba_rows import HIDDEN, is_half, sum_of
from griffin_kernels.ops.local_attention_step import _numba_ring
from griffin_kernels.ops.local_attention_step._numba_ring import copy_elements, exp_of, largest_score, widen_row

_njit: Any = numba.njit
_f32: Any = numba.float32

FILES = (__file__, *_numba_ring.FILES)
"""Sources that the kernel is made from, besides _native.py."""

KEYS = 4
"""Keys of a tile of products. Its queries are as many."""


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements. Row r of a row's T * G queries is token r // G."""

    k: Headed  # data [P, R, Hkv, d], channels contiguous
    v: Headed
    items: int  # B * Hkv * parts, in that order
    parts: int
    part: int  # keys of a part, a multiple of KEYS
    window: int
    ring: int  # R, slots of a row's ring
    table: int  # int64 [B, pages], the pages of every ring; 0 where a ring is one row of the pool
    pages: int
    size: int  # slots of a page
    time: int  # T
    shared: int  # Hkv
    group: int  # G = Hq / Hkv
    d: int
    positions: int  # int64 [B]
    lengths: int  # int64 [B], real tokens of a row; 0 in place of T for all
    rings: int  # int64 [B], which of the P rings a row works on, or its first page, negative for none; 0: 0 .. B - 1
    q: int  # float32 [B, Hkv, T * G, d], scaled
    k_new: int  # data [B, T, Hkv, d], contiguous
    v_new: int
    out: int  # float32 [items, T * G, d]: weighted values
    largest: int  # float32 [items, T * G]: largest score
    total: int  # float32 [items, T * G]: sum of weights
    scratch: int  # float32 [items, (T * G + 1) * part + KEYS * d]
    capped: int  # 1: scores are bent
    softcap: int  # float32 [1]


AT = places(Fields)


def _multiplied(rows: int) -> Any:
    """``(queries, keys, scores, pitch, d)``: scores of ``rows`` queries and KEYS keys.

    queries: address of the first, the others d floats apart. keys: addresses. scores: address of the first query's, the
    others ``pitch`` bytes apart.
    """

    @intrinsic
    def multiply(typing: Any, queries: Any, keys: Any, scores: Any, pitch: Any, d: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first, tuple_of_keys, scores, pitch, d = args
            row = builder.mul(d, INT64(4))
            starts = [builder.add(first, builder.mul(row, INT64(r))) for r in range(rows)]
            others = [builder.extract_value(tuple_of_keys, n) for n in range(KEYS)]
            whole = builder.and_(d, INT64(-lanes()))

            def products(v: Lanes) -> Any:
                def step(index: Any, *sums: Any) -> Sequence[Any]:
                    offset = builder.mul(index, INT64(4))
                    left = [v.read(builder.add(start, offset)) for start in starts]
                    right = [v.read(builder.add(key, offset)) for key in others]
                    pairs = [(one, other) for one in left for other in right]
                    return [v.multiply_add(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

                return step

            wide, single = Lanes(builder, lanes()), Lanes(builder, 1)
            zeros = [wide.constant(0.0)] * (rows * KEYS)
            sums = _native.loop(builder, INT64(0), whole, lanes(), products(wide), zeros)
            name = f"llvm.vector.reduce.fadd.v{lanes()}f32"
            kind = ir.FunctionType(FLOAT, [FLOAT, wide.of(FLOAT)])
            reduce = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            sums = [builder.call(reduce, [FLOAT(0.0), one], fastmath=["reassoc"]) for one in sums]
            sums = _native.loop(builder, whole, d, 1, products(single), sums)
            for r in range(rows):
                place = builder.add(scores, builder.mul(pitch, INT64(r)))
                for n in range(KEYS):
                    single.write(sums[r * KEYS + n], builder.add(place, INT64(4 * n)))
            return context.get_dummy_value()

        return types.void(queries, keys, scores, pitch, d), generate

    @_njit
    def multiplied(queries: int, keys: Any, scores: int, pitch: int, d: int) -> None:
        multiply(queries, keys, scores, pitch, d)

    return multiplied


def _added(rows: int, keys: int) -> Any:
    """``(values, weights, pitch, out, d)``: weighted values of ``keys`` keys added to the sums of ``rows`` queries.

    values: addresses. weights: address of the first query's, the others ``pitch`` bytes apart. out: address of the
    first sums, the others d floats apart.
    """

    @intrinsic
    def add(typing: Any, values: Any, weights: Any, pitch: Any, out: Any, d: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tuple_of_values, weights, pitch, out, d = args
            row = builder.mul(d, INT64(4))
            outs = [builder.add(out, builder.mul(row, INT64(r))) for r in range(rows)]
            sources = [builder.extract_value(tuple_of_values, n) for n in range(keys)]
            single = Lanes(builder, 1)
            firsts = [builder.add(weights, builder.mul(pitch, INT64(r))) for r in range(rows)]
            factors = [[single.read(builder.add(one, INT64(4 * n))) for n in range(keys)] for one in firsts]
            whole = builder.and_(d, INT64(-lanes()))
            for start, end, count in ((INT64(0), whole, lanes()), (whole, d, 1)):
                v = Lanes(builder, count)
                spread = [[v.broadcast(factor) for factor in of_row] for of_row in factors]

                def step(index: Any, v: Lanes = v, spread: Any = spread) -> Sequence[Any]:
                    offset = builder.mul(index, INT64(4))
                    read = [v.read(builder.add(source, offset)) for source in sources]
                    for place, of_row in zip(outs, spread, strict=True):
                        where = builder.add(place, offset)
                        total = v.read(where)
                        for factor, value in zip(of_row, read, strict=True):
                            total = v.multiply_add(factor, value, total)
                        v.write(total, where)
                    return ()

                _native.loop(builder, start, end, count, step)
            return context.get_dummy_value()

        return types.void(values, weights, pitch, out, d), generate

    @_njit
    def added(values: Any, weights: int, pitch: int, out: int, d: int) -> None:
        add(values, weights, pitch, out, d)

    return added


_QUERIES = 4
_multiply, _multiply_one = _multiplied(_QUERIES), _multiplied(1)
_add, _add_to_one, _add_one_to_one = _added(_QUERIES, KEYS), _added(1, KEYS), _added(1, 1)


@_njit
def _place(f: Any, tensor: int, ring: int, batch: int, slot: int, key_head: int) -> int:
    """The element where the key or value in a slot of a row's ring begins."""
    if f[AT.table]:
        ring = longs(f[AT.table], batch * f[AT.pages] + slot // f[AT.size])[0]
        slot = slot % f[AT.size]
    return ring * f[tensor + 1] + slot * f[tensor + 2] + key_head * f[tensor + 3]


@_njit
def _row_of(data: Any, f: Any, tensor: int, new: int, item: Any, index: int, slot: int) -> int:
    """The address of a row of float32: of key or value ``index`` of an item, or of scratch row ``slot`` if widened.

    item: (ring, key head, first position, keys before the call, row of the batch, scratch).
    """
    ring, key_head, low, old, batch, scratch = item
    d = f[AT.d]
    if index < old:
        base = f[tensor]
        place = _place(f, tensor, ring, batch, (low + index) % f[AT.ring], key_head)
    else:
        base, place = f[new], ((batch * f[AT.time] + index - old) * f[AT.shared] + key_head) * d
    if is_half(data):
        widen_row(base, place, scratch + slot * d * 4, d)
        return scratch + slot * d * 4
    return base + place * 4


@_njit
def _write_new(data: Any, f: Any, item: Any, begin: int, end: int) -> None:
    """Put the new tokens among keys begin .. end - 1 of an item into their slots."""
    ring, key_head, low, old, batch, _ = item
    d = f[AT.d]
    for index in range(max(begin, old), end):
        slot = (low + index) % f[AT.ring]
        source = ((batch * f[AT.time] + index - old) * f[AT.shared] + key_head) * d
        k = _place(f, AT.k, ring, batch, slot, key_head)
        v = _place(f, AT.v, ring, batch, slot, key_head)
        copy_elements(data, f[AT.k_new], source, f[AT.k], k, d)
        copy_elements(data, f[AT.v_new], source, f[AT.v], v, d)


@_njit
def _seen(f: Any, old: int, token: int, begin: int, count: int) -> tuple[int, int]:
    """The first key that a token sees of ``count`` from ``begin`` on, and the one after the last."""
    own = old + token - begin
    return max(0, own - f[AT.window] + 1), min(count, own + 1)


@_njit
def _weigh(f: Any, scores: Any, powers: int, first: int, end: int) -> tuple[float, float]:
    """Scores first .. end - 1 of a row become weights; the largest score, and the sum of weights."""
    count = end - first
    if f[AT.capped]:
        cap = floats(f[AT.softcap], 0)[0]
        # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        exp_of(scores, ints(powers, 0), floats(powers, 0), _f32(2) / cap, _f32(0), count)
        for i in range(count):
            scores[i] = cap - _f32(2) * cap / (scores[i] + _f32(1))
    top = largest_score(scores, count)
    exp_of(scores, ints(powers, 0), floats(powers, 0), _f32(1), top, count)
    return top, sum_of(scores, count)


def attend(data: Any) -> None:
    """Put the new tokens into their slots; weighted values, largest score and sum of weights of every item."""
    f = fields_of(data)
    parts, part, shared, group, d = f[AT.parts], f[AT.part], f[AT.shared], f[AT.group], f[AT.d]
    rows, pitch = f[AT.time] * group, part * 4
    number = take(data, 0)
    while number < f[AT.items]:
        head = number // parts
        batch, begin = head // shared, number % parts * part
        position = longs(f[AT.positions], batch)[0]
        ring = longs(f[AT.rings], batch)[0] if f[AT.rings] else batch
        tokens = longs(f[AT.lengths], batch)[0] if f[AT.lengths] else f[AT.time]
        low = max(0, position - f[AT.window] + 1)
        old = position - low
        count = min(old + tokens, begin + part) - begin if ring >= 0 and tokens > 0 else 0
        scratch = f[AT.scratch] + number * ((rows + 1) * part + 4 * d) * 4
        powers = scratch + rows * pitch
        item = (ring, head % shared, low, old, batch, powers + pitch)
        out = f[AT.out] + number * rows * d * 4
        largest, total = floats(f[AT.largest], number * rows), floats(f[AT.total], number * rows)
        sums = floats(out, 0)
        for j in range(rows * d):
            sums[j] = _f32(0)
        for r in range(rows):
            largest[r], total[r] = _f32(HIDDEN), _f32(0)
        if count > 0:
            _write_new(data, f, item, begin, begin + count)
            real, last, q = tokens * group, begin + count - 1, f[AT.q] + head * rows * d * 4
            for i in range(0, count, 4):
                # past the end: the last key again, whose score nothing reads
                keys = (
                    _row_of(data, f, AT.k, AT.k_new, item, begin + i, 0),
                    _row_of(data, f, AT.k, AT.k_new, item, min(begin + i + 1, last), 1),
                    _row_of(data, f, AT.k, AT.k_new, item, min(begin + i + 2, last), 2),
                    _row_of(data, f, AT.k, AT.k_new, item, min(begin + i + 3, last), 3),
                )
                r = 0
                while r + 4 <= real:
                    _multiply(q + r * d * 4, keys, scratch + r * pitch + i * 4, pitch, d)
                    r += 4
                while r < real:
                    _multiply_one(q + r * d * 4, keys, scratch + r * pitch + i * 4, pitch, d)
                    r += 1
            full, end = 0, count  # keys full .. end - 1 are seen by every token
            for token in range(tokens):
                first, after = _seen(f, old, token, begin, count)
                full, end = max(full, first), min(end, after)
                for r in range(token * group, (token + 1) * group):
                    if first < after:
                        largest[r], total[r] = _weigh(f, floats(scratch, r * part + first), powers, first, after)
            for i in range(0, count, 4):
                if full <= i and i + 4 <= end:
                    values = (
                        _row_of(data, f, AT.v, AT.v_new, item, begin + i, 0),
                        _row_of(data, f, AT.v, AT.v_new, item, begin + i + 1, 1),
                        _row_of(data, f, AT.v, AT.v_new, item, begin + i + 2, 2),
                        _row_of(data, f, AT.v, AT.v_new, item, begin + i + 3, 3),
                    )
                    r = 0
                    while r + 4 <= real:
                        _add(values, scratch + r * pitch + i * 4, pitch, out + r * d * 4, d)
                        r += 4
                    while r < real:
                        _add_to_one(values, scratch + r * pitch + i * 4, pitch, out + r * d * 4, d)
                        r += 1
                    continue
                for j in range(i, min(i + 4, count)):
                    value = (_row_of(data, f, AT.v, AT.v_new, item, begin + j, 0),)
                    for token in range(tokens):
                        first, after = _seen(f, old, token, begin, count)
                        if first <= j < after:
                            for r in range(token * group, (token + 1) * group):
                                _add_one_to_one(value, scratch + r * pitch + j * 4, pitch, out + r * d * 4, d)
        number = take(data, 0)
