"""The compiled code of numba.direct: temporal_conv1d and its gradient, in tiles of steps by blocks of channels.

Within a tile, a vector of channels (a cache line of data) goes down the steps: taps, and the earlier inputs (forward)
or later gradients (backward) that they multiply, stay in registers, so that each element is loaded, widened and stored
once. The number of taps is known when a kernel is compiled. Steps near a boundary, where some taps do not count or read
the state, are tiles of one step.

Kernels are as in _native.py, their rows as in _native_rows.py; the pointer's type holds K.

    forward:   y_t = act(bias + sum_k w_k x_{t-k}) + residual_t
    backward:  dx_s = sum_k w_k dy_{s+k},  dw_k += dy_{s+k} x_s,  dbias += dy_s            w_k: weight[K-1-k]

There is a kernel for each activation, with a residual and without; the gradients of those that do something are in
_conv_numba_active.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _native_activations, _native_names, _native_rows
from griffin_kernels.ops._native import INT64, Strided, data_bytes, field, finish, int64_at, loop, places, take
from griffin_kernels.ops._native_names import named
from griffin_kernels.ops._native_rows import STREAM, RowLanes, input_at, known_number, row, wide_bytes

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements. Data unless said otherwise; wide: accumulator."""

    x: Strided
    state: Strided  # or 0
    weight: tuple[int, int]  # wide: address, stride of taps
    positions: Strided  # int64 [B, T], or 0
    residual: Strided  # forward only, or 0
    dy: Strided  # backward only
    leaving: Strided  # backward only: gradient of the new state, or 0
    items: int  # groups of slots, times blocks; a slot is one chunk of time of one batch row
    slots: int
    span: int  # slots in a group
    chunks: int  # in a batch row
    chunk: int  # steps in a chunk
    blocks: int  # blocks of channels
    block: int  # channels in a block
    rows: int  # steps in a tile, at most
    width: int  # D
    time: int  # T
    stream: int  # 1: write y, or dx, past the caches; their rows and blocks must begin on a cache line
    bias: int  # wide, or 0
    offsets: int  # int64 [sequences+1] of packed sequences, or 0
    sequences: int
    out: int  # y, or dx: [B, T, D] contiguous
    dstate: int  # backward only: [B, K-1, D] contiguous; with state
    sums: int  # backward only: wide [groups, K+1, D], zeros: gradients of weight's rows and of bias


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__), str(_native_names.__file__), *_native_activations.FILES)
"""Sources that the kernels are made from, besides _native.py."""


tile_of_steps = row(RowLanes, (0, STREAM))
"""Of a number of steps, a column of lanes at a time."""


def load_if(v: RowLanes, condition: Any, address: Any, readable: Any) -> Any:
    """Data where the condition holds, else zeros; ``readable`` is an address that may always be read."""
    return v.builder.select(condition, v.load(v.builder.select(condition, address, readable)), v.zero())


def constant_of(v: RowLanes, bias: Any, readable: Any) -> Any:
    """The bias, or zeros without one; ``readable`` is an address of as many floats that may always be read."""
    there = v.builder.icmp_signed("!=", bias, INT64(0))
    return v.builder.select(there, v.read(v.builder.select(there, bias, readable)), v.zero())


def weights_of(v: RowLanes, weight: Any, weight_step: Any) -> list[Any]:
    """w_0 .. w_{K-1}: what multiplies the input of this step, of the step before, ..."""
    rows = [v.read(v.builder.add(weight, v.builder.mul(weight_step, INT64(j)))) for j in range(v.number)]
    return rows[::-1]


def _forward_tile(activation: str | None) -> Any:
    """A numba function of a tile's steps; see ``emit`` for its numbers."""

    @tile_of_steps
    def emit(
        v: RowLanes,
        rows: Any,
        x: Any,
        x_step: Any,
        state: Any,  # where the row of this step would be if the state went on
        state_step: Any,
        inside: Any,  # how many steps back x begins
        reach: Any,  # how many steps back a tap counts
        out: Any,
        out_step: Any,
        weight: Any,
        weight_step: Any,
        bias: Any,  # or 0
        *residual: Any,  # nothing, or its row of this step and the stride of steps
    ) -> None:
        b = v.builder
        w, constant = weights_of(v, weight, weight_step), constant_of(v, bias, weight)
        earlier = []
        for k in range(1, v.number):
            back = INT64(k)
            in_x = b.icmp_signed("<=", back, inside)
            row = b.select(in_x, b.sub(x, b.mul(x_step, back)), b.sub(state, b.mul(state_step, back)))
            earlier.append(load_if(v, b.icmp_signed("<=", back, reach), row, x))

        def step(r: Any, *before: Any) -> Sequence[Any]:
            inputs = [v.load(b.add(x, b.mul(x_step, r))), *before]
            total = constant
            for tap, value in zip(w, inputs, strict=True):
                total = v.multiply_add(tap, value, total)
            made = _native_activations.activated(v, activation, total)
            if residual:
                row, row_step = residual
                made = v.add(made, v.load(b.add(row, b.mul(row_step, r))))
            v.store(made, b.add(out, b.mul(out_step, r)))
            return inputs[:-1]

        loop(b, INT64(0), rows, 1, step, earlier)

    return emit


@tile_of_steps
def _backward_tile(
    v: RowLanes,
    rows: Any,
    x: Any,  # or the state's row
    x_step: Any,
    dy: Any,
    dy_step: Any,
    used: Any,  # bit k: the step k later reads this one through tap k
    leaving: Any,  # row of the new state's gradient for this step, or 0
    out: Any,
    out_step: Any,
    weight: Any,
    weight_step: Any,
    sums: Any,
    sums_step: Any,
) -> None:
    b, taps = v.builder, v.number
    w = weights_of(v, weight, weight_step)
    total_rows = [b.add(sums, b.mul(sums_step, INT64(j))) for j in (*range(taps - 1, -1, -1), taps)]
    totals = [v.read(row) for row in total_rows]  # of w_0 .. w_{K-1}, then of the bias
    through = load_if(v, b.icmp_signed("!=", leaving, INT64(0)), leaving, x)

    def later(k: int) -> tuple[Any, Any]:
        used_here = b.icmp_signed("!=", b.and_(used, INT64(1 << k)), INT64(0))
        return used_here, b.add(dy, b.mul(dy_step, INT64(k)))

    first = [load_if(v, *later(k), x) for k in range(taps - 1)]
    furthest_used, furthest = later(taps - 1)

    def step(r: Any, *carried: Any) -> Sequence[Any]:
        totals, known = carried[: taps + 1], carried[taps + 1 :]
        at, readable = b.add(furthest, b.mul(dy_step, r)), b.add(x, b.mul(x_step, r))
        gradients = [*known, load_if(v, furthest_used, at, readable)]
        value, result = v.load(readable), through
        for tap, gradient in zip(w, gradients, strict=True):
            result = v.multiply_add(tap, gradient, result)
        v.store(result, b.add(out, b.mul(out_step, r)))
        sums = [v.multiply_add(gradient, value, t) for gradient, t in zip(gradients, totals[:-1], strict=True)]
        return [*sums, v.add(totals[-1], gradients[0]), *gradients[1:]]

    done = loop(b, INT64(0), rows, 1, step, [*totals, *first])
    for value, place in zip(done[: taps + 1], total_rows, strict=True):
        v.write(value, place)


@_njit
def output_at(data: Any, name: int, batch: int, rows: int, channel: int) -> int:
    """Address of an output [B, rows, D] in one batch row, from ``channel`` on."""
    return field(data, name) + (batch * rows * field(data, AT.width) + channel) * data_bytes(data)


@_njit
def reach_of(data: Any, batch: int, t: int) -> int:
    """How many steps back a tap of step t counts, as positions have it."""
    positions, furthest = field(data, AT.positions), known_number(data) - 1
    if positions == 0:
        return furthest
    at = batch * field(data, AT.positions + 1) + t * field(data, AT.positions + 2)
    return max(0, min(furthest, int64_at(positions, at)))


@_njit
def _first_sequence(data: Any, t: int) -> int:
    """The packed sequence to begin with in a chunk that starts at step t: the first that ends after t or starts at it.

    Sequences without steps belong to the chunk of the step where they stand, those at the very end to the last chunk.
    """
    offsets, low, high = field(data, AT.offsets), 0, field(data, AT.sequences)
    while low < high:
        middle = (low + high) // 2
        if int64_at(offsets, middle + 1) > t or int64_at(offsets, middle) >= t:
            high = middle
        else:
            low = middle + 1
    return low


@_njit
def bias_at(data: Any, channel: int) -> int:
    """Address of the bias from ``channel`` on; 0 without one."""
    bias = field(data, AT.bias)
    return bias + channel * wide_bytes(data) if bias != 0 else 0


@_njit
def _plain(data: Any, numbers: Any, batch: int, t: int, channel: int) -> Any:
    return numbers


@_njit
def _added(data: Any, numbers: Any, batch: int, t: int, channel: int) -> Any:
    residual, step = input_at(data, AT.residual, batch, channel)
    return (*numbers, residual + t * step, step)


def _forward_steps(activation: str | None, added: bool = False) -> Any:
    """A numba function of steps begin .. end of the sequence that starts at step ``start``.

    Row ``row`` of the state comes before it. Arguments are those of ``_backward_steps``, which needs ``time`` and
    ``sums`` too.
    """
    tile, completed = _forward_tile(activation), _added if added else _plain

    @named(f"forward_{activation}{'_added' if added else ''}_steps")
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
        x, x_step = input_at(data, AT.x, batch, channel)
        state, state_step = input_at(data, AT.state, row, channel)
        fresh, segmented = field(data, AT.state) == 0, field(data, AT.positions) != 0
        wide = wide_bytes(data)
        weight, weight_step = field(data, AT.weight) + channel * wide, field(data, AT.weight + 1) * wide
        bias = bias_at(data, channel)
        out, out_step = output_at(data, AT.out, batch, field(data, AT.time), channel), field(data, AT.width) * size
        x += start * x_step
        out += start * out_step
        t = begin
        while t < end:
            reach, rows = reach_of(data, batch, start + t), 1
            if fresh:
                reach = min(reach, t)
            if t >= furthest and reach == furthest:
                longest = min(most, end - t)
                if not segmented:
                    rows = longest
                while rows < longest and reach_of(data, batch, start + t + rows) == furthest:
                    rows += 1
            earlier = (x + t * x_step, x_step, state + (furthest + t) * state_step, state_step, t, reach)
            numbers = (rows, *earlier, out + t * out_step, out_step, weight, weight_step, bias)
            tile(data, stream, channels, completed(data, numbers, batch, start + t, channel))
            t += rows

    return steps


@_njit
def used_of(data: Any, batch: int, start: int, time: int, s: int) -> int:
    """Bit k: step s + k of a sequence of ``time`` steps exists, and its tap k, which reads step s, counts."""
    used = 0
    for k in range(known_number(data)):
        if 0 <= s + k < time and (k == 0 or reach_of(data, batch, start + s + k) >= k):
            used |= 1 << k
    return used


@_njit
def _backward_steps(
    data: Any, batch: int, row: int, start: int, time: int, begin: int, end: int, channel: int, channels: int, sums: int
) -> None:
    """Steps begin .. end of the sequence of ``time`` steps from step ``start`` on; its state too if begin is 0."""
    furthest, size = known_number(data) - 1, data_bytes(data)
    most, stream = field(data, AT.rows), field(data, AT.stream)
    width, segmented = field(data, AT.width), field(data, AT.positions) != 0
    x, x_step = input_at(data, AT.x, batch, channel)
    state, state_step = input_at(data, AT.state, row, channel)
    dy, dy_step = input_at(data, AT.dy, batch, channel)
    leaving, leaving_step = input_at(data, AT.leaving, row, channel)
    wide = wide_bytes(data)
    weight, weight_step = field(data, AT.weight) + channel * wide, field(data, AT.weight + 1) * wide
    out = output_at(data, AT.out, batch, field(data, AT.time), channel)
    dstate = output_at(data, AT.dstate, row, furthest, channel)
    step, sums_step, every = width * size, width * wide, (1 << (furthest + 1)) - 1
    x += start * x_step
    dy += start * dy_step
    out += start * step
    s = begin
    if begin == 0 and field(data, AT.state) != 0:
        s = -furthest
    while s < end:
        used, rows = used_of(data, batch, start, time, s), 1
        place = s - (time - furthest)  # in the new state
        left = leaving + place * leaving_step if place >= 0 and field(data, AT.leaving) != 0 else 0
        if s >= 0 and used == every:
            longest = min(most, end - s)
            if not segmented:
                rows = min(longest, time - furthest - s)
            while rows < longest and used_of(data, batch, start, time, s + rows) == every:
                rows += 1
        source, target, past = x + s * x_step, out + s * step, stream
        if s < 0:
            source, target, past = state + (furthest + s) * state_step, dstate + (furthest + s) * step, 0
        numbers = (rows, source, x_step, dy + s * dy_step, dy_step, used, left, target, step, weight, weight_step)
        _backward_tile(data, past, channels, (*numbers, sums, sums_step))
        s += rows


def items_of(steps: Any) -> Any:
    """A numba function of the pointer that takes work items and runs ``steps`` on every sequence of their slots."""

    @named(f"{steps.py_func.__qualname__}_of_slot")
    def slot(data: Any, batch: int, begin: int, end: int, channel: int, channels: int, sums: int) -> None:
        time, offsets = field(data, AT.time), field(data, AT.offsets)
        if offsets == 0:
            steps(data, batch, batch, 0, time, begin, end, channel, channels, sums)
            return
        row = _first_sequence(data, begin)
        while row < field(data, AT.sequences):
            start, stop = int64_at(offsets, row), int64_at(offsets, row + 1)
            if start >= end and not start == end == time:
                break
            first, last = max(begin - start, 0), min(end, stop) - start
            steps(data, 0, row, start, stop - start, first, last, channel, channels, sums)
            row += 1

    @named(f"{steps.py_func.__qualname__}_of_items")
    def items(data: Any) -> None:
        blocks, block = field(data, AT.blocks), field(data, AT.block)
        width, time = field(data, AT.width), field(data, AT.time)
        chunk, chunks = field(data, AT.chunk), field(data, AT.chunks)
        span, slots = field(data, AT.span), field(data, AT.slots)
        item = take(data, 0)
        while item < field(data, AT.items):
            group, channel = item // blocks, item % blocks * block
            sums = field(data, AT.sums) + (group * (known_number(data) + 1) * width + channel) * wide_bytes(data)
            for at in range(group * span, min((group + 1) * span, slots)):
                begin = at % chunks * chunk
                slot(data, at // chunks, begin, min(begin + chunk, time), channel, min(block, width - channel), sums)
            item = take(data, 0)
        finish(data)

    return items


_forward, _backward = items_of(_forward_steps(None)), items_of(_backward_steps)
_forward_silu, _forward_gelu = items_of(_forward_steps("silu")), items_of(_forward_steps("gelu"))
_added_none = items_of(_forward_steps(None, added=True))
_added_silu = items_of(_forward_steps("silu", added=True))
_added_gelu = items_of(_forward_steps("gelu", added=True))


def forward(data: Any) -> None:
    """y."""
    _forward(data)


def forward_silu(data: Any) -> None:
    """silu of the sums."""
    _forward_silu(data)


def forward_gelu(data: Any) -> None:
    """gelu of the sums."""
    _forward_gelu(data)


def forward_added(data: Any) -> None:
    """The sums and the residual."""
    _added_none(data)


def forward_silu_added(data: Any) -> None:
    """silu of the sums, and the residual."""
    _added_silu(data)


def forward_gelu_added(data: Any) -> None:
    """gelu of the sums, and the residual."""
    _added_gelu(data)


def backward(data: Any) -> None:
    """dx, dstate, and the sums of every group."""
    _backward(data)


FORWARD = {None: forward, "silu": forward_silu, "gelu": forward_gelu}
ADDED = {None: forward_added, "silu": forward_silu_added, "gelu": forward_gelu_added}
"""Kernels by activation: without a residual, and with one."""
