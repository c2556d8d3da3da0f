"""Compiled code of numba.fused: rg_lru's gates and recurrence, and their gradient, by rows of channels.

A row is what one time step holds of one block of channels. A vector of it is read from every input, goes through both
gates, the recurrence and the output's rounding in registers, and is written once; what gates and gradients are of one
step is rg_lru's (_lru_numba_tiles.py). The carry and the constants of a block stay in the first-level cache for a whole
sequence. Kernels are as in _native.py, rows as in _native_rows.py.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _gelu, _native_rows
from griffin_kernels.ops._native import Strided, data_bytes, field, finish, places, take
from griffin_kernels.ops._native_rows import STREAM, RowLanes, bounds, input_at, is_set, row, zero
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as steps

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements. Data unless said otherwise."""

    reset: Strided  # bool [B, T], or 0
    x: Strided  # [B, T, D], contiguous within a step, as all inputs
    z_i: Strided
    z_r: Strided
    dy: Strided  # the backward's
    y: Strided  # the backward's
    items: int  # sequences * blocks
    blocks: int  # blocks of channels
    block: int  # channels in a block
    width: int  # D
    time: int  # T
    offsets: int  # int32 [N+1] of packed sequences, or 0
    fresh: int  # 1: a sequence's first step is a reset
    hints: int  # STREAM, or 0
    rate: int  # float [D]: log2 a = rate r
    natural_rate: int  # float [D]: log a = natural_rate r
    state: int  # float [N, D]: the carry that enters a sequence, replaced by what leaves it; gradients in the backward
    before: int  # float [N, D]: the states before first steps, or 0 where these are resets
    recent: int  # float [N, D]: r d log a of some steps, zeros
    total: int  # float [N, D]: of all steps, zeros
    out: int  # y, or dx; [B, T, D] contiguous, as dz_i and dz_r
    dz_i: int
    dz_r: int


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__), str(steps.__file__), str(_gelu.__file__))
"""Sources that the kernels are made from, besides _native.py."""

SUMMED = 64
"""Steps whose r d log a is summed before it is added to what came before, for a sum of few roundings."""


class Item(NamedTuple):
    """What a work item is of: a sequence and a block of channels."""

    sequence: int
    batch: int
    begin: int  # of time
    end: int
    channel: int
    channels: int


_row = row(RowLanes, (0, STREAM))


@_row
def _forward_row(v: RowLanes, x: Any, z_i: Any, z_r: Any, out: Any, rate: Any, carry: Any) -> None:
    gates = steps.gates_of(v, v.load(z_i), v.load(z_r), v.read(rate))
    state = steps.advanced(v, gates, v.load(x), v.read(carry))
    v.write(state, carry)
    v.store(state, out)


@_row
def _forward_reset_row(v: RowLanes, x: Any, z_i: Any, out: Any, carry: Any) -> None:
    i, _ = steps.sigmoid(v, v.load(z_i))
    state = v.multiply(i, v.load(x))
    v.write(state, carry)
    v.store(state, out)


def _gradient(v: RowLanes, before: Any, rows: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
    """rows: addresses of x, z_i, z_r, dy, dx, dz_i and dz_r; constants: of rates, carry and sum."""
    x, z_i, z_r, dy, dx, dz_i, dz_r = rows
    rate, natural_rate, carry, recent = constants
    gates = steps.gates_of(v, v.load(z_i), v.load(z_r), v.read(rate))
    g = v.add(v.load(dy), v.read(carry))
    own = steps.gradient_of(v, gates, g, v.load(x), before, v.read(natural_rate))
    v.write(v.multiply(gates.a, g), carry)
    v.write(v.add(v.read(recent), own.log_a), recent)
    v.store(own.direct, dx)
    v.store(own.z_i, dz_i)
    v.store(own.z_r, dz_r)


@_row
def _backward_row(v: RowLanes, before: Any, *numbers: Any) -> None:
    _gradient(v, v.load(before), numbers[:7], numbers[7:])


@_row
def _backward_first_row(v: RowLanes, before: Any, *numbers: Any) -> None:
    _gradient(v, v.read(before), numbers[:7], numbers[7:])


@_row
def _backward_reset_row(v: RowLanes, x: Any, z_i: Any, dy: Any, dx: Any, dz_i: Any, dz_r: Any, carry: Any) -> None:
    # nothing reaches a, m or an earlier step, whatever g is
    i, not_i = steps.sigmoid(v, v.load(z_i))
    g = v.add(v.load(dy), v.read(carry))
    direct, through_i = steps.gradient_of_reset(v, i, not_i, g, v.load(x))
    v.store(direct, dx)
    v.store(through_i, dz_i)
    v.store(v.zero(), dz_r)
    v.write(v.zero(), carry)


@_row
def _added_row(v: RowLanes, recent: Any, total: Any) -> None:
    v.write(v.add(v.read(total), v.read(recent)), total)
    zero(v, recent)


@_njit(error_model="numpy")
def _item(data: Any, number: int) -> Item:
    blocks, block = field(data, AT.blocks), field(data, AT.block)
    sequence, channel = number // blocks, number % blocks * block
    batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
    return Item(sequence, batch, begin, end, channel, min(block, field(data, AT.width) - channel))


@_njit
def _is_reset(data: Any, item: Item, t: int) -> bool:
    return is_set(data, AT.reset, item.batch, t) or (t == item.begin and field(data, AT.fresh) != 0)


@_njit
def _wide(data: Any, name: int, item: Item) -> int:
    """Address of an item's channels in a float [N, D]."""
    return field(data, name) + (item.sequence * field(data, AT.width) + item.channel) * 4


@_njit
def _output(data: Any, name: int, item: Item) -> int:
    """Address of an item's channels in the first step of its batch row."""
    first = item.batch * field(data, AT.time) * field(data, AT.width)
    return field(data, name) + (first + item.channel) * data_bytes(data)


def forward(data: Any) -> None:
    """y, and the states that leave the sequences."""
    hints, out_step = field(data, AT.hints), field(data, AT.width) * data_bytes(data)
    number = take(data, 0)
    while number < field(data, AT.items):
        item = _item(data, number)
        carry, rate = _wide(data, AT.state, item), field(data, AT.rate) + 4 * item.channel
        x, x_step = input_at(data, AT.x, item.batch, item.channel)
        z_i, z_i_step = input_at(data, AT.z_i, item.batch, item.channel)
        z_r, z_r_step = input_at(data, AT.z_r, item.batch, item.channel)
        out = _output(data, AT.out, item)
        for t in range(item.begin, item.end):
            x_row, z_i_row, out_row = x + t * x_step, z_i + t * z_i_step, out + t * out_step
            if _is_reset(data, item, t):
                _forward_reset_row(data, hints, item.channels, (x_row, z_i_row, out_row, carry))
            else:
                numbers = (x_row, z_i_row, z_r + t * z_r_step, out_row, rate, carry)
                _forward_row(data, hints, item.channels, numbers)
        number = take(data, 0)
    finish(data)


def backward(data: Any) -> None:
    """dx, dz_i, dz_r, the sums of r d log a, and the gradients of the first states."""
    hints, out_step = field(data, AT.hints), field(data, AT.width) * data_bytes(data)
    number = take(data, 0)
    while number < field(data, AT.items):
        item = _item(data, number)
        carry, recent, total = (
            _wide(data, AT.state, item),
            _wide(data, AT.recent, item),
            _wide(data, AT.total, item),
        )
        rate = field(data, AT.rate) + 4 * item.channel
        constants = (rate, field(data, AT.natural_rate) + 4 * item.channel, carry, recent)
        x, x_step = input_at(data, AT.x, item.batch, item.channel)
        z_i, z_i_step = input_at(data, AT.z_i, item.batch, item.channel)
        z_r, z_r_step = input_at(data, AT.z_r, item.batch, item.channel)
        dy, dy_step = input_at(data, AT.dy, item.batch, item.channel)
        y, y_step = input_at(data, AT.y, item.batch, item.channel)
        dx, dz_i, dz_r = _output(data, AT.out, item), _output(data, AT.dz_i, item), _output(data, AT.dz_r, item)
        for past in range(item.end - item.begin):
            t = item.end - 1 - past
            x_row, z_i_row, dy_row = x + t * x_step, z_i + t * z_i_step, dy + t * dy_step
            dx_row, dz_i_row, dz_r_row = dx + t * out_step, dz_i + t * out_step, dz_r + t * out_step
            if _is_reset(data, item, t):
                addresses = (x_row, z_i_row, dy_row, dx_row, dz_i_row, dz_r_row, carry)
                _backward_reset_row(data, hints, item.channels, addresses)
            else:
                rows = (x_row, z_i_row, z_r + t * z_r_step, dy_row, dx_row, dz_i_row, dz_r_row)
                if t == item.begin:
                    before = _wide(data, AT.before, item)
                    _backward_first_row(data, hints, item.channels, (before, *rows, *constants))
                else:
                    _backward_row(data, hints, item.channels, (y + (t - 1) * y_step, *rows, *constants))
            if (past + 1) % SUMMED == 0:
                _added_row(data, 0, item.channels, (recent, total))
        _added_row(data, 0, item.channels, (recent, total))
        number = take(data, 0)
    finish(data)
