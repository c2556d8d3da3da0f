"""Rows of scores become weights in two passes of vectors, for kernels that multiply weights of bfloat16.

x = factor s, bent where there is a softcap, hidden where a query does not see;  p = 2^(x - max x)

In the gradient p = 2^(x - lse), and the scores' slopes are made in the same pass. The same formulas as those of
_numba_rows.py, which goes over a row once for each of their parts. The first pass leaves x where s was and finds the
largest; the second sums p in float32 and writes it rounded.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops._native import INT16, INT32, INT64, Lanes, intrinsic, loop
from griffin_kernels.ops.local_attention import _numba_rows as rows
from griffin_kernels.ops.local_attention._numba_fields import AT, floats, rounded_up

_njit: Any = numba.njit
_f32: Any = numba.float32

_LANES = 16
"""float32 values of a vector."""


def _power(v: Lanes, x: Any) -> Any:
    """2^x for x <= 125; 0 below -125; NaN stays NaN."""
    b, round_to = v.builder, v.constant(rows.ROUND_TO)
    bounded = v.at_least(x, -rows.LAST_POWER)
    shifted = v.add(bounded, round_to)
    rest = v.subtract(bounded, v.subtract(shifted, round_to))
    p = v.constant(rows.POWER_TERMS[0])
    for term in rows.POWER_TERMS[1:]:
        p = v.multiply_add(p, rest, v.constant(term))
    integer = v.of(INT32)
    power = b.shl(b.bitcast(shifted, integer), v.constant(23, INT32))
    scaled = b.bitcast(b.add(b.bitcast(p, integer), power), p.type)
    return b.select(b.fcmp_ordered("<", x, v.constant(-rows.LAST_POWER)), v.constant(0.0), scaled)


def _bent(v: Lanes, x: Any, cap: Any) -> Any:
    """cap tanh(x log(2) / 2)."""
    bounded = v.at_most(v.at_least(x, -rows.STRAIGHT), rows.STRAIGHT)
    twice = v.add(cap, cap)
    return v.subtract(cap, v.divide(twice, v.add(_power(v, bounded), v.constant(1.0))))


def _reduced(builder: Any, name: str, *values: Any) -> Any:
    """A vector's lanes as one, by ``llvm.vector.reduce``."""
    kind = values[-1].type
    name = f"llvm.vector.reduce.{name}.v{_LANES}f32"
    made = ir.FunctionType(kind.element, [value.type for value in values])
    function = builder.module.globals.get(name) or ir.Function(builder.module, made, name)
    return builder.call(function, values, fastmath=("reassoc",))


def _index(builder: Any, value: Any) -> Any:
    """An int64 as an int32 in every lane."""
    kind = ir.VectorType(INT32, _LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(value, INT32), INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(kind, [0] * _LANES))


def _within(builder: Any, at: Any, since: Any, until: Any) -> Any:
    """Which of the keys from ``at`` on count: ``since`` to ``until`` - 1, both of ``_index``."""
    own = builder.add(_index(builder, at), ir.Constant(ir.VectorType(INT32, _LANES), list(range(_LANES))))
    return builder.and_(builder.icmp_signed(">=", own, since), builder.icmp_signed("<", own, until))


def _scores_function(capped: bool) -> Any:
    """A numba function ``(values, since, until, count, factor, cap) -> float``: the first pass, the largest x.

    values: address of ``count`` scores, in whole vectors. They count from ``since`` to ``until`` - 1.
    """

    @intrinsic
    def scores(typing: Any, values: Any, since: Any, until: Any, count: Any, factor: Any, cap: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values, since, until, count, factor, cap = args
            v = Lanes(builder, _LANES)
            factors, caps, hidden = v.broadcast(factor), v.broadcast(cap), v.constant(rows.HIDDEN)
            begin, end = _index(builder, since), _index(builder, until)

            def piece(at: Any, largest: Any) -> Sequence[Any]:
                address = builder.add(values, builder.mul(at, INT64(4)))
                x = v.multiply(v.read(address), factors)
                x = _bent(v, x, caps) if capped else x
                x = builder.select(_within(builder, at, begin, end), x, hidden)
                v.write(x, address)
                return (builder.select(builder.fcmp_ordered(">", x, largest), x, largest),)

            (largest,) = loop(builder, INT64(0), count, _LANES, piece, (hidden,))
            return _reduced(builder, "fmax", largest)

        return types.float32(values, since, until, count, factor, cap), generate

    return scores


_scores, _capped_scores = _scores_function(capped=False), _scores_function(capped=True)


@intrinsic
def _weights(typing: Any, values: Any, less: Any, count: Any, target: Any) -> Any:
    """The second pass: p of ``count`` x, in whole vectors, as bfloat16 to an address; their sum before rounding."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, less, count, target = args
        v = Lanes(builder, _LANES)
        subtrahend = v.broadcast(less)

        def piece(at: Any, total: Any) -> Sequence[Any]:
            p = _power(v, v.subtract(v.read(builder.add(values, builder.mul(at, INT64(4)))), subtrahend))
            place = v.pointer(builder.add(target, builder.mul(at, INT64(2))), INT16)
            builder.store(v.rounded_to_bfloat16(p), place, align=2)
            return (v.add(total, p),)

        (total,) = loop(builder, INT64(0), count, _LANES, piece, (v.constant(0.0),))
        return _reduced(builder, "fadd", ir.Constant(total.type.element, 0.0), total)

    return types.float32(values, less, count, target), generate


def weigher(unit: int) -> Any:
    """What ``loops`` calls ``weigh``, for kernels whose weights are of bfloat16. unit: of a row, in whole vectors."""

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
        whole, values, factors = rounded_up(count, unit), scores + 4 * place, floats(f[AT.factors], 0)
        since, until = min(max(seen, 0), whole), min(max(after, 0), count)
        if f[AT.capped]:
            found = _capped_scores(values, since, until, whole, factors[0], factors[1])
        else:
            found = _scores(values, since, until, whole, factors[0], _f32(0))
        top = max(largest[r], found)
        shift = rows.shift_of(top)
        rows.shrink(f, shift, r, largest, total, out)
        total[r] += _weights(values, shift, whole, weights + 2 * place)
        largest[r] = top

    return weigh


def _slopes_function(capped: bool) -> Any:
    """A numba function ``(scores, changes, pitch, slopes, step, spans, count, lse, delta, factor, cap)``.

    Two rows of scores q k^T, ``pitch`` bytes apart, become weights p = 2^(x - lse), and two of changes dout v^T slopes
    ds = p (dout v^T - delta), times the slope of what bent x. Both are rounded to bfloat16: pairs of the two rows in
    the place of the first, and slopes also as rows, ``step`` bytes apart. spans: since, until of either row.
    """

    @intrinsic
    def slopes(
        typing: Any,
        scores: Any,
        changes: Any,
        pitch: Any,
        target: Any,
        step: Any,
        spans: Any,
        count: Any,
        lse: Any,
        delta: Any,
        factor: Any,
        cap: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            scores, changes, pitch, target, step, spans, count, lse, delta, factor, cap = args
            v, b = Lanes(builder, _LANES), builder
            factors, caps, none = v.broadcast(factor), v.broadcast(cap), v.constant(0.0)
            per_cap = v.divide(v.constant(1.0), caps)
            ends = [_index(b, b.extract_value(spans, i)) for i in range(4)]
            less = [v.broadcast(b.extract_value(lse, i)) for i in range(2)]
            deltas = [v.broadcast(b.extract_value(delta, i)) for i in range(2)]

            def piece(at: Any) -> Sequence[Any]:
                offset, pairs = b.mul(at, INT64(4)), []
                for i in range(2):
                    place = b.add(offset, b.mul(pitch, INT64(i)))
                    x = v.multiply(v.read(b.add(scores, place)), factors)
                    x = _bent(v, x, caps) if capped else x
                    p = _power(v, v.subtract(x, less[i]))
                    ds = v.multiply(p, v.subtract(v.read(b.add(changes, place)), deltas[i]))
                    if capped:
                        bent = v.multiply(x, per_cap)
                        ds = v.multiply(ds, v.subtract(v.constant(1.0), v.multiply(bent, bent)))
                    seen = _within(b, at, ends[2 * i], ends[2 * i + 1])
                    pairs.append([v.rounded_to_bfloat16(b.select(seen, value, none)) for value in (p, ds)])
                    own = b.add(b.add(target, b.mul(at, INT64(2))), b.mul(step, INT64(i)))
                    b.store(pairs[i][1], v.pointer(own, INT16), align=2)
                for array, first, second in zip((scores, changes), *pairs, strict=True):
                    high = b.shl(b.zext(second, v.of(INT32)), v.constant(16, INT32))
                    both = b.or_(b.zext(first, v.of(INT32)), high)
                    b.store(both, v.pointer(b.add(array, offset), INT32), align=4)
                return ()

            loop(builder, INT64(0), count, _LANES, piece)
            return context.get_dummy_value()

        kinds = (scores, changes, pitch, target, step, spans, count, lse, delta, factor, cap)
        return types.void(*kinds), generate

    return slopes


slopes, capped_slopes = _slopes_function(capped=False), _slopes_function(capped=True)
