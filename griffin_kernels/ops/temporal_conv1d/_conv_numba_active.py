"""The gradient of the native convolution with an activation: _conv_numba.py's, of sums that are done again.

    z_t = bias + sum_k w_k x_{t-k},   g_t = dy_t act'(z_t)
    dx_s = sum_k w_k g_{s+k},  dw_k += g_{s+k} x_s,  dbias += g_s                                  w_k: weight[K-1-k]

Going down the steps of a tile, a vector of channels keeps the K-1 inputs from its step on beside the K-1 gradients of
sums that follow: each step brings one input and makes one gradient. A tile begins by making K-1 of them.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba

from griffin_kernels.ops import _native_activations
from griffin_kernels.ops._native import INT64, data_bytes, field, loop
from griffin_kernels.ops._native_names import named
from griffin_kernels.ops._native_rows import RowLanes, input_at, known_number, wide_bytes
from griffin_kernels.ops.temporal_conv1d import _conv_numba
from griffin_kernels.ops.temporal_conv1d._conv_numba import (
    AT,
    bias_at,
    constant_of,
    items_of,
    load_if,
    output_at,
    reach_of,
    tile_of_steps,
    weights_of,
)

_njit: Any = numba.njit

FILES = (__file__, *_conv_numba.FILES)

_BITS = 4
"""Of how many steps back a tap of one step counts, at most 15; those of K <= 16 steps share an integer."""


def _tile(activation: str) -> Any:
    """A numba function of a tile's steps; see ``emit`` for its numbers."""

    @tile_of_steps
    def emit(
        v: RowLanes,
        rows: Any,
        first: Any,  # the tile's first step in its sequence, below 0 in its state
        time: Any,  # steps of the sequence
        x: Any,  # where that step's row would be if x went on
        x_step: Any,
        state: Any,  # where it would be if the state went on
        state_step: Any,
        carried: Any,  # 1 if there is a state
        dy: Any,
        dy_step: Any,
        used: Any,  # bit k: the step k later reads this one through tap k
        reaches: Any,  # of this step and the K-1 after it
        leaving: Any,  # row of the new state's gradient for this step, or 0
        out: Any,
        out_step: Any,
        weight: Any,
        weight_step: Any,
        bias: Any,  # or 0
        sums: Any,
        sums_step: Any,
    ) -> None:
        b, taps = v.builder, v.number
        w, constant = weights_of(v, weight, weight_step), constant_of(v, bias, weight)
        total_rows = [b.add(sums, b.mul(sums_step, INT64(j))) for j in (*range(taps - 1, -1, -1), taps)]
        totals = [v.read(row) for row in total_rows]  # of w_0 .. w_{K-1}, then of the bias
        readable = b.select(b.icmp_signed("<", first, INT64(0)), state, x)
        through = load_if(v, b.icmp_signed("!=", leaving, INT64(0)), leaving, readable)

        def input_of(steps: Any) -> Any:
            """The input so many steps later, zeros where there is none."""
            step = b.add(first, steps)
            in_x = b.icmp_unsigned("<", step, time)
            in_state = b.and_(b.icmp_signed("<", step, INT64(0)), b.icmp_signed("!=", carried, INT64(0)))
            in_state = b.and_(in_state, b.icmp_signed(">=", step, INT64(1 - taps)))
            place = b.select(in_x, b.add(x, b.mul(x_step, steps)), b.add(state, b.mul(state_step, steps)))
            return load_if(v, b.or_(in_x, in_state), place, readable)

        def gradient(k: int, place: Any, inputs: Sequence[Any]) -> Any:
            """Of the sum k steps later, zeros unless used. inputs: of its step, of the one before, ..."""
            reach, total = b.and_(b.lshr(reaches, INT64(_BITS * k)), INT64(2**_BITS - 1)), constant
            for j, (tap, value) in enumerate(zip(w, inputs, strict=True)):
                counts = b.icmp_signed("<=", INT64(j), reach)
                total = v.multiply_add(tap, b.select(counts, value, v.zero()) if j else value, total)
            there = b.icmp_signed("!=", b.and_(used, INT64(1 << k)), INT64(0))
            reached = v.multiply(load_if(v, there, place, readable), _native_activations.slope(v, activation, total))
            return b.select(there, reached, v.zero())

        around = [input_of(INT64(m)) for m in range(1 - taps, taps - 1)]
        made = [gradient(k, b.add(dy, b.mul(dy_step, INT64(k))), around[k : k + taps][::-1]) for k in range(taps - 1)]

        def step(r: Any, *moving: Any) -> Sequence[Any]:
            totals, known, inputs = moving[: taps + 1], moving[taps + 1 : 2 * taps], moving[2 * taps :]
            furthest = b.add(r, INT64(taps - 1))
            newest = input_of(furthest)
            value = inputs[0] if inputs else newest
            last = gradient(taps - 1, b.add(dy, b.mul(dy_step, furthest)), [newest, *inputs[::-1]])
            gradients, result = [*known, last], through
            for tap, each in zip(w, gradients, strict=True):
                result = v.multiply_add(tap, each, result)
            v.store(result, b.add(out, b.mul(out_step, r)))
            grown = [v.multiply_add(each, value, t) for each, t in zip(gradients, totals[:-1], strict=True)]
            return [*grown, v.add(totals[-1], gradients[0]), *gradients[1:], *[*inputs, newest][1:]]

        done = loop(b, INT64(0), rows, 1, step, [*totals, *made, *around[taps - 1 :]])
        for value, place in zip(done[: taps + 1], total_rows, strict=True):
            v.write(value, place)

    return emit


@_njit
def _reach_in(data: Any, batch: int, start: int, t: int) -> int:
    """How many steps back a tap of step t of the sequence counts: not past its first one without a state."""
    reach: int = reach_of(data, batch, start + t)
    return reach if field(data, AT.state) != 0 else min(reach, t)


def _steps(activation: str) -> Any:
    """A numba function as ``_conv_numba._backward_steps``, of the same arguments."""
    tile = _tile(activation)

    @named(f"backward_{activation}_steps")
    def steps(
        data: Any,
        batch: int,
        row: int,
        start: int,
        time: int,
        begin: int,
        end: int,
        channel: int,
        channels: int,
        sums: int,
    ) -> None:
        furthest, size = known_number(data) - 1, data_bytes(data)
        most, stream = field(data, AT.rows), field(data, AT.stream)
        width, carried = field(data, AT.width), 1 if field(data, AT.state) != 0 else 0
        x, x_step = input_at(data, AT.x, batch, channel)
        state, state_step = input_at(data, AT.state, row, channel)
        dy, dy_step = input_at(data, AT.dy, batch, channel)
        leaving, leaving_step = input_at(data, AT.leaving, row, channel)
        wide = wide_bytes(data)
        weight, weight_step = field(data, AT.weight) + channel * wide, field(data, AT.weight + 1) * wide
        out = output_at(data, AT.out, batch, field(data, AT.time), channel)
        dstate = output_at(data, AT.dstate, row, furthest, channel)
        step, sums_step, bias = width * size, width * wide, bias_at(data, channel)
        every, full = (1 << (furthest + 1)) - 1, 0
        for k in range(furthest + 1):
            full |= furthest << (_BITS * k)
        x += start * x_step
        dy += start * dy_step
        out += start * step
        s = -furthest if begin == 0 and carried else begin
        while s < end:
            used, reaches, rows = 0, 0, 1
            for k in range(furthest + 1):
                if 0 <= s + k < time:
                    reach = _reach_in(data, batch, start, s + k)
                    reaches |= reach << (_BITS * k)
                    if reach >= k:
                        used |= 1 << k
            place = s - (time - furthest)  # in the new state
            left = leaving + place * leaving_step if place >= 0 and field(data, AT.leaving) != 0 else 0
            if s >= 0 and used == every and reaches == full:
                longest = min(most, end - s, time - furthest - s)
                while rows < longest and _reach_in(data, batch, start, s + rows + furthest) == furthest:
                    rows += 1
            target, past = out + s * step, stream
            if s < 0:
                target, past = dstate + (furthest + s) * step, 0
            inputs = (s, time, x + s * x_step, x_step, state + (furthest + s) * state_step, state_step, carried)
            reached = (dy + s * dy_step, dy_step, used, reaches, left)
            numbers = (rows, *inputs, *reached, target, step, weight, weight_step, bias, sums, sums_step)
            tile(data, past, channels, numbers)
            s += rows

    return steps


_silu, _gelu = items_of(_steps("silu")), items_of(_steps("gelu"))


def backward_silu(data: Any) -> None:
    """dx, dstate, and the sums of every group."""
    _silu(data)


def backward_gelu(data: Any) -> None:
    """dx, dstate, and the sums of every group."""
    _gelu(data)


BACKWARD = {None: _conv_numba.backward, "silu": backward_silu, "gelu": backward_gelu}
"""Kernels by activation."""
