"""Inner loops of numba.fused, emitted as vectors: products of tiles in registers, gates and the recurrence of a run.

A *panel* is two vectors wide: a row of it is 2 V floats, V = ``_native.lanes()``. A *block array* holds rows of up to
CHUNK floats, STRIDE apart: a constant, so that rows of a tile are offsets in the instructions, and none that makes them
meet in the same cache sets.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numba import types

from griffin_kernels.ops import _gelu
from griffin_kernels.ops._native import FLOAT, INT32, INT64, Lanes, intrinsic, lanes, loop, registers

MAX_SQRT_GRADIENT = 1000.0
"""Largest derivative of the square root in the multiplier, as in op.py."""

CHUNK = 256
"""Channels in one block array; a wider gate block takes several."""
STRIDE = CHUNK + 16
"""Floats from row to row of a block array."""


def _product(row_step: int, depth_step: int) -> Any:
    """C += A B for one panel of C, as ``(rows, depth, a, b, b_second, b_step, c, c_step)``.

    A [rows, depth] begins at address a, with row_step and depth_step floats between neighbours. B [depth, 2V]: the two
    vectors of a row are at b and b_second, rows b_step bytes apart. C [rows, 2V], rows c_step bytes apart.
    """

    @intrinsic
    def product(
        typing: Any, rows: Any, depth: Any, a: Any, b: Any, b_second: Any, b_step: Any, c: Any, c_step: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows, depth, a, b, b_second, b_step, c, c_step = args
            v, done = Lanes(builder, lanes()), INT64(0)
            # as many rows as keep two sums each, a row of B and what multiplies it in registers
            for tile in (12, 4, 1) if registers() == 32 else (6, 2, 1):

                def body(first: Any, tile: int = tile) -> Sequence[Any]:
                    targets = [builder.add(c, builder.mul(builder.add(first, INT64(r)), c_step)) for r in range(tile)]
                    start = builder.add(a, builder.mul(first, INT64(4 * row_step)))
                    pairs = [[target, builder.add(target, INT64(4 * v.count))] for target in targets]
                    sums = [v.read(address) for pair in pairs for address in pair]

                    def step(_: Any, at: Any, left: Any, right: Any, *sums: Any) -> Sequence[Any]:
                        columns = v.read(left), v.read(right)
                        results = []
                        for r in range(tile):
                            place = builder.add(at, INT64(4 * row_step * r))
                            factor = v.broadcast(builder.load(builder.inttoptr(place, FLOAT.as_pointer()), align=4))
                            for side in (0, 1):
                                results.append(v.multiply_add(factor, columns[side], sums[2 * r + side]))
                        further = builder.add(at, INT64(4 * depth_step))
                        return further, builder.add(left, b_step), builder.add(right, b_step), *results

                    _, _, _, *sums = loop(builder, INT64(0), depth, 1, step, (start, b, b_second, *sums))
                    for value, address in zip(sums, (address for pair in pairs for address in pair), strict=True):
                        v.write(value, address)
                    return ()

                undone = builder.sub(rows, done)
                end = builder.add(done, builder.sub(undone, builder.srem(undone, INT64(tile))))
                loop(builder, done, end, tile, body)
                done = end
            return context.get_dummy_value()

        return types.void(rows, depth, a, b, b_second, b_step, c, c_step), generate

    return product


product = _product(STRIDE, 1)
"""A is a block array."""
transposed_product = _product(1, STRIDE)
"""A is the transpose of a block array."""


# (2^f - 1) / f on [-1/2, 1/2], minimax: 1e-8 relative; evaluated in float32, 2^f - 1 is right to 1.3e-7
_EXP2 = (0.69314718246, 0.24022649229, 0.055503573269, 0.0096182376146, 0.0013390735257, 0.00015403507859)
_LOG2_E = 1.4426950216293335
_GELU_SLOPE = 2 * _gelu.SCALE
_GELU_CUBIC = _gelu.CUBIC * _GELU_SLOPE
_GELU_FLAT = 16.0
"""From here on gelu's slope is 1, on the other side 0, to the last bit; the cube of what is larger would overflow."""
_ROUND = 12582912.0
"""1.5 2^23: added to a float32 below 2^22 it leaves the nearest integer in the lowest bits."""


def _exp2(v: Lanes, shifted: Any, fraction: Any) -> tuple[Any, Any]:
    """(s, p) with s = 2^k, k the integer in ``shifted`` = k + _ROUND, -126 <= k <= 127, and p = 2^fraction - 1.

    p is exact to its last bits even where it is small.
    """
    b = v.builder
    exponent = b.shl(b.bitcast(shifted, v.of(INT32)), v.constant(23, INT32))
    scale = b.bitcast(b.add(exponent, v.constant(0x3F800000, INT32)), v.of(FLOAT))
    value = v.constant(_EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        value = v.multiply_add(value, fraction, v.constant(coefficient))
    return scale, v.multiply(value, fraction)


def sigmoid(v: Lanes, z: Any) -> tuple[Any, Any]:
    """sigmoid(z), and 1 - sigmoid(z) without cancellation; NaN stays NaN."""
    z = v.at_most(v.at_least(z, -87.0), 87.0)
    slope = v.constant(-_LOG2_E)
    shifted = v.multiply_add(z, slope, v.constant(_ROUND))
    whole = v.subtract(shifted, v.constant(_ROUND))
    scale, rest = _exp2(v, shifted, v.multiply_add(z, slope, v.builder.fneg(whole)))
    power = v.multiply_add(scale, rest, scale)  # exp(-z)
    value = v.divide(v.constant(1.0), v.add(power, v.constant(1.0)))
    return value, v.multiply(power, value)


class GateValues(NamedTuple):
    """i, 1 - i, r, 1 - r, a and m = sqrt(1 - a^2)."""

    i: Any
    not_i: Any
    r: Any
    not_r: Any
    a: Any
    m: Any


def gates_of(v: Lanes, z_i: Any, z_r: Any, rate: Any) -> GateValues:
    """rate: log2 a = rate r, not above 0."""
    (i, not_i), (r, not_r) = sigmoid(v, z_i), sigmoid(v, z_r)
    log2_a = v.at_least(v.multiply(rate, r), -126.0)
    shifted = v.add(log2_a, v.constant(_ROUND))
    scale, rest = _exp2(v, shifted, v.subtract(log2_a, v.subtract(shifted, v.constant(_ROUND))))
    a = v.multiply_add(scale, rest, scale)
    # 1 - a = -expm1(log a), exact to its last bits near a = 1, and 1 - a^2 = (1 - a) (2 - (1 - a))
    missing = v.multiply_add(v.builder.fneg(scale), rest, v.subtract(v.constant(1.0), scale))
    squared = v.multiply(missing, v.subtract(v.constant(2.0), missing))
    return GateValues(i, not_i, r, not_r, a, v.sqrt(squared))


def advanced(v: Lanes, gates: GateValues, x: Any, state: Any) -> Any:
    """The state after a step that is no reset."""
    return v.multiply_add(gates.a, state, v.multiply(gates.i, x, gates.m))


class StepGradient(NamedTuple):
    """Of one step: g m i, the part of dx that goes through no gate; dz_i, dz_r; r d log a."""

    direct: Any
    z_i: Any
    z_r: Any
    log_a: Any


def gradient_of(v: Lanes, gates: GateValues, g: Any, x: Any, before: Any, natural_slope: Any) -> StepGradient:
    """The equations of rg_lru_bwd. g: what reaches the state; before: the state that the step was given; log a =
    natural_slope r."""
    through_m = v.multiply(g, x)
    dm = v.multiply(through_m, gates.i)
    dlog_i = v.multiply(dm, gates.m)
    # dm times the derivative of m by log a is -a^2 dm / m, clipped where 1 / (2 m) is
    bounded = v.at_least(gates.m, 0.5 / MAX_SQRT_GRADIENT)
    inner = v.multiply(gates.a, v.divide(dm, bounded))
    inner = v.subtract(v.multiply(g, before), inner)
    dlog_r = v.multiply(gates.a, inner, gates.r)
    dz_i, dz_r = v.multiply(dlog_i, gates.not_i), v.multiply(dlog_r, natural_slope, gates.not_r)
    return StepGradient(v.multiply(g, gates.m, gates.i), dz_i, dz_r, dlog_r)


def gradient_of_reset(v: Lanes, i: Any, not_i: Any, g: Any, x: Any) -> tuple[Any, Any]:
    """(part of dx that goes through no gate, dz_i) of a step that is a reset."""
    return v.multiply(g, i), v.multiply(g, x, i, not_i)


def _run(emit: Callable[..., None]) -> Any:
    """A numba function ``(rows, numbers)`` that emits ``emit(lanes, rows, *numbers)`` on one vector of channels."""

    @intrinsic
    def run(typing: Any, rows: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            unpacked = [builder.extract_value(args[1], i) for i in range(len(numbers))]
            emit(Lanes(builder, lanes()), args[0], *unpacked)
            return context.get_dummy_value()

        return types.void(rows, numbers), generate

    return run


def _every_row(emit: Callable[..., None]) -> Any:
    """As ``_run``, of ``emit(lanes, row, *numbers)`` for each of the rows."""

    def rows_of(v: Lanes, rows: Any, *numbers: Any) -> None:
        def step(row: Any) -> Sequence[Any]:
            emit(v, row, *numbers)
            return ()

        loop(v.builder, INT64(0), rows, 1, step)

    return _run(rows_of)


def _panel_row(v: Lanes, start: Any, row: Any) -> tuple[Any, Any]:
    """Addresses of both vectors of a panel's row."""
    left = v.builder.add(start, v.builder.mul(row, INT64(8 * v.count)))
    return left, v.builder.add(left, INT64(4 * v.count))


def _array_row(v: Lanes, start: Any, row: Any) -> Any:
    return v.builder.add(start, v.builder.mul(row, INT64(4 * STRIDE)))


@_run
def fill(v: Lanes, rows: Any, z: Any, left: Any, right: Any) -> None:
    """Every row of a panel: the vectors at ``left`` and ``right``."""
    values = v.read(left), v.read(right)

    def step(row: Any) -> Sequence[Any]:
        for value, address in zip(values, _panel_row(v, z, row), strict=True):
            v.write(value, address)
        return ()

    loop(v.builder, INT64(0), rows, 1, step)


@_every_row
def zero(v: Lanes, row: Any, target: Any) -> None:
    """Vectors, one after the other."""
    v.write(v.constant(0.0), v.builder.add(target, v.builder.mul(row, INT64(4 * v.count))))


@_every_row
def accumulate(v: Lanes, row: Any, weight: Any, source: Any, target: Any) -> None:
    """target += weight * source, over neighbouring vectors."""
    offset = v.builder.mul(row, INT64(4 * v.count))
    left, right, total = (v.read(v.builder.add(place, offset)) for place in (weight, source, target))
    v.write(v.multiply_add(left, right, total), v.builder.add(target, offset))


@_every_row
def gelu_times(v: Lanes, row: Any, h: Any, y: Any) -> None:
    """y = h gelu(y), in the tanh form: y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)); block arrays."""
    place = _array_row(v, y, row)
    value = v.read(place)
    cubic = v.multiply_add(v.multiply(value, value), v.constant(_GELU_CUBIC), v.constant(_GELU_SLOPE))
    gate, _ = sigmoid(v, v.multiply(value, cubic))
    v.write(v.multiply(value, gate, v.read(_array_row(v, h, row))), place)


@_every_row
def gelu_backward(v: Lanes, row: Any, dout: Any, h: Any, y: Any) -> None:
    """dout = dout gelu(y), y = dout h gelu'(y): the gradients of h and y where out = h gelu(y); block arrays.

    With z = 2 sqrt(2 / pi) (y + 0.044715 y^3) and s = sigmoid(z): gelu = y s, gelu' = s + y s (1 - s) dz/dy.
    """
    places = [_array_row(v, start, row) for start in (dout, h, y)]
    gradient, state, value = (v.read(place) for place in places)
    bounded = v.at_most(v.at_least(value, -_GELU_FLAT), _GELU_FLAT)
    square = v.multiply(bounded, bounded)
    cubic = v.multiply_add(square, v.constant(_GELU_CUBIC), v.constant(_GELU_SLOPE))
    gate, rest = sigmoid(v, v.multiply(bounded, cubic))
    inner = v.multiply_add(square, v.constant(3 * _GELU_CUBIC), v.constant(_GELU_SLOPE))
    slope = v.multiply_add(v.multiply(bounded, inner, rest), gate, gate)
    v.write(v.multiply(gradient, value, gate), places[0])
    v.write(v.multiply(gradient, state, slope), places[2])


@_run
def forward_run(v: Lanes, rows: Any, z: Any, x: Any, y: Any, rate: Any, carry: Any) -> None:
    """y = h, and the carry; z: panel of both gates' arguments; x, y: block arrays."""
    slope = v.read(rate)

    def step(row: Any, state: Any) -> Sequence[Any]:
        z_i, z_r = (v.read(address) for address in _panel_row(v, z, row))
        gates = gates_of(v, z_i, z_r, slope)
        state = advanced(v, gates, v.read(_array_row(v, x, row)), state)
        v.write(state, _array_row(v, y, row))
        return (state,)

    (state,) = loop(v.builder, INT64(0), rows, 1, step, (v.read(carry),))
    v.write(state, carry)


@_run
def forward_reset(v: Lanes, rows: Any, z: Any, x: Any, y: Any, rate: Any, carry: Any) -> None:
    """As ``forward_run`` for one row that is a reset: a counts as 0, m as 1."""
    i, _ = sigmoid(v, v.read(z))
    state = v.multiply(i, v.read(x))
    v.write(state, y)
    v.write(state, carry)


@_run
def backward_run(v: Lanes, rows: Any, *numbers: Any) -> None:
    """Gradients of the gates' arguments from the last row to the first; the equations are rg_lru_bwd's.

    numbers: z, x, dy, before, dz_i, rate, natural_rate, carry, sums, sums_step. dy is replaced by g m i, the part of dx
    that goes through no gate; before, h of the step before, by dz_r. log a = natural_rate r. sums: vectors of
    r d log a, dz_i and dz_r.
    """
    z, x, dy, before, dz_i, rate, natural_rate, carry, *sums = numbers
    slope, natural_slope = v.read(rate), v.read(natural_rate)
    places = _sums(v, *sums)

    def step(index: Any, carry: Any, *totals: Any) -> Sequence[Any]:
        row = v.builder.sub(v.builder.sub(rows, INT64(1)), index)
        z_i, z_r = (v.read(address) for address in _panel_row(v, z, row))
        gates = gates_of(v, z_i, z_r, slope)
        dy_row, before_row = _array_row(v, dy, row), _array_row(v, before, row)
        g = v.add(v.read(dy_row), carry)
        own = gradient_of(v, gates, g, v.read(_array_row(v, x, row)), v.read(before_row), natural_slope)
        v.write(own.direct, dy_row)
        v.write(own.z_i, _array_row(v, dz_i, row))
        v.write(own.z_r, before_row)
        new = [v.add(total, value) for total, value in zip(totals, (own.log_a, own.z_i, own.z_r), strict=True)]
        return v.multiply(gates.a, g), *new

    zeros = [v.constant(0.0)] * 3
    carried, *totals = loop(v.builder, INT64(0), rows, 1, step, (v.read(carry), *zeros))
    v.write(carried, carry)
    for place, total in zip(places, totals, strict=True):
        v.write(v.add(v.read(place), total), place)


@_run
def backward_reset(v: Lanes, rows: Any, *numbers: Any) -> None:
    """As ``backward_run`` for one row that is a reset: nothing reaches a, m or an earlier step."""
    z, x, dy, before, dz_i, _, _, carry, *sums = numbers
    i, not_i = sigmoid(v, v.read(z))
    g = v.add(v.read(dy), v.read(carry))
    direct, dz = gradient_of_reset(v, i, not_i, g, v.read(x))
    v.write(direct, dy)
    v.write(v.constant(0.0), before)
    v.write(dz, dz_i)
    v.write(v.constant(0.0), carry)
    place = _sums(v, *sums)[1]
    v.write(v.add(v.read(place), dz), place)


def _sums(v: Lanes, sums: Any, step: Any) -> list[Any]:
    return [v.builder.add(sums, v.builder.mul(step, INT64(k))) for k in range(3)]
