"""Compiled code for a few tokens of each sequence: the one-token kernel's products, then the recurrence token by token.

Alone, or between a convolution and a gelu. Rows are tokens counted through the batch, row = batch row * T + step. An
item is some output channels of one gate block, for all rows: weights are read once for up to ``ROWS`` of them, where
they lie, in the data's dtype. Only an item touches its channels of the pool, sequence after sequence, and it reads what
one starts from before it writes.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _gelu, _native, _native_rows
from griffin_kernels.ops._native import copy, copy_data, data_bytes, field, parameter_bytes, take, widen
from griffin_kernels.ops._native_rows import bounds
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as gates
from griffin_kernels.ops.rg_lru_step import _lru_step_numba as token
from griffin_kernels.ops.rg_lru_step._lru_step_numba import PAD, ROWS
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba as conv

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements; channels are contiguous."""

    x: _native.Strided  # data [B, T, D]
    y: _native.Strided  # data [B, T, D], or 0: the output is the state
    pool: _native.Strided  # float [P, D]
    window: _native.Strided  # data [N, K-1, D]: inputs before each sequence, once gathered, or 0
    windows: _native.Strided  # data [P, K-1, D]: where windows are kept, or 0
    gates: tuple[int, int, int, int]  # data [H, n, n], parameters [D] of the input gate, then of the recurrence gate
    workers: int  # threads that have begun; they advance it
    items: int  # gate blocks times parts, parts fastest
    parts: int  # of a gate block's channels
    part: int  # channels of a part
    n: int  # channels of a gate block
    rows: int  # B * T, or where the last packed sequence ends
    time: int  # T
    width: int  # D
    sequences: int  # N
    slots: int  # int64 [N]
    keep: int  # int64 [B*T]
    positions: int  # int64 [B*T], or 0
    offsets: int  # int32 [N+1], or 0
    out: int  # data [B, T, D] contiguous
    a_param: int  # parameters [D]
    taps: int  # K, or 0: no convolution, the gates see x
    conv_weight: int  # parameters [K, D]
    conv_bias: int  # parameters [D]
    scratch: int
    scratch_bytes: int  # of each worker


AT = _native.places(Fields)

FILES = (
    *(str(module.__file__) for module in (gates, _gelu, token, _native_rows)),
    *conv.FILES,
    __file__,
)
"""Sources that the kernel is made from, besides _native.py."""


@_njit
def _reaching(data: Any, sequence: int, row: int) -> tuple[int, int]:
    """The sequence of a row, which is ``sequence`` or a later one, and its first row."""
    offsets, time = field(data, AT.offsets), field(data, AT.time)
    if offsets == 0:
        return row // time, row // time * time
    _, begin, end = bounds(offsets, time, sequence)
    while end <= row:
        sequence += 1
        _, begin, end = bounds(offsets, time, sequence)
    return sequence, begin


@_njit
def _step(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a channel of an input [B, T, D] at a row."""
    batch, step = row // field(data, AT.time), row % field(data, AT.time)
    place = batch * field(data, name + 1) + step * field(data, name + 2) + channel
    address: int = field(data, name) + place * data_bytes(data)
    return address


@_njit
def _pooled(data: Any, name: int, row: int, step: int, channel: int, size: int) -> int:
    """Address of a channel of a row of a pool."""
    place = row * field(data, name + 1) + step * field(data, name + 2) + channel
    address: int = field(data, name) + place * size
    return address


@_njit
def _put_input(data: Any, sequence: int, begin: int, row: int, channel: int, target: int) -> None:
    """The input of a sequence at a row, up to K-1 rows before its first, where the window has it."""
    n, before = field(data, AT.n), begin - row
    if before <= 0:
        copy_data(data, 1, n, _step(data, AT.x, row, channel), 0, target, 0)
    elif _native.int64_at(field(data, AT.slots), sequence) < 0:
        conv.zero_data(data, n, target)
    else:
        place = _pooled(data, AT.window, sequence, field(data, AT.taps) - 1 - before, channel, data_bytes(data))
        copy_data(data, 1, n, place, 0, target, 0)


@_njit
def _enter(data: Any, sequence: int, begin: int, row: int, channel: int, u: int, kept: int, keeps: bool) -> None:
    """What a row's gate block sees, as floats: x, or its convolution. keeps: write windows that are kept too.

    kept: room for K-1 rows of n data.
    """
    size, own, n, taps = data_bytes(data), parameter_bytes(data), field(data, AT.n), field(data, AT.taps)
    x = _step(data, AT.x, row, channel)
    if taps == 0:
        widen(data, 1, n, x, 0, u, 0)
        return
    for k in range(taps - 1):
        _put_input(data, sequence, begin, row - (taps - 1) + k, channel, kept + k * n * size)
    first = conv.first_kept(field(data, AT.positions), row, taps)
    weight = field(data, AT.conv_weight) + channel * own
    bias = field(data, AT.conv_bias) + channel * own
    conv.wide_conv(data, n, (x, weight, field(data, AT.width) * own, bias, kept, kept, n * size, taps, first, u))
    target = _native.int64_at(field(data, AT.keep), row)
    if keeps and target >= 0:
        for k in range(taps - 1):
            place = _pooled(data, AT.windows, target, k, channel, size)
            if k + 1 < first:
                conv.zero_data(data, n, place)
            else:
                _put_input(data, sequence, begin, row - (taps - 2) + k, channel, place)


@_njit
def _advance(
    data: Any, sequence: int, begin: int, row: int, channel: int, channels: int, inputs: Any, carry: int
) -> None:
    """One row's state and output, for some channels. inputs: u, both gates' arguments, the decay; carry: the state."""
    size, positions = data_bytes(data), field(data, AT.positions)
    start = _native.int64_at(field(data, AT.slots), sequence)
    begins = row == begin and start < 0
    if row == begin:
        if start < 0:
            conv.zero_floats(data, channels, carry)
        else:
            copy(data, 1, channels, _pooled(data, AT.pool, start, 0, channel, 4), 0, carry, 0)
    if positions != 0:
        begins = _native.int64_at(positions, row) == 0
    gated = field(data, AT.y) != 0
    out = field(data, AT.out) + (row * field(data, AT.width) + channel) * size
    u, z_i, z_r, rate = inputs
    numbers = (u, z_i, z_r, rate, carry, carry, _step(data, AT.y, row, channel), out)
    if begins and gated:
        token.begin_gated(data, channels, numbers)
    elif begins:
        token.begin(data, channels, numbers)
    elif gated:
        token.advance_gated(data, channels, numbers)
    else:
        token.advance(data, channels, numbers)
    target = _native.int64_at(field(data, AT.keep), row)
    if target >= 0:
        copy(data, 1, channels, carry, 0, _pooled(data, AT.pool, target, 0, channel, 4), 0)


def gather(data: Any) -> None:
    """The windows that sequences start from, before anything is kept: others may have yet to read a row."""
    size = data_bytes(data)
    for sequence in range(field(data, AT.sequences)):
        slot = _native.int64_at(field(data, AT.slots), sequence)
        if slot >= 0:
            source, step = _pooled(data, AT.windows, slot, 0, 0, size), field(data, AT.windows + 2) * size
            target = _pooled(data, AT.window, sequence, 0, 0, size)
            rows, width = field(data, AT.taps) - 1, field(data, AT.width)
            copy_data(data, rows, width, source, step, target, width * size)


def extend(data: Any) -> None:
    """The output, and what is kept."""
    size, own, parts, part = data_bytes(data), parameter_bytes(data), field(data, AT.parts), field(data, AT.part)
    n, total = field(data, AT.n), field(data, AT.rows)
    rate = field(data, AT.scratch) + take(data, AT.workers) * field(data, AT.scratch_bytes)
    carry = rate + part * 4
    u = carry + part * 4
    u_step, z_step = (n + PAD) * 4, part * 4
    z_i = u + min(total, ROWS) * u_step
    z_r = z_i + min(total, ROWS) * z_step
    kept = z_r + min(total, ROWS) * z_step
    item = take(data, 0)
    while item < field(data, AT.items):
        block, first = item // parts, item % parts * part
        channels, channel = min(part, n - first), block * n + first
        weight = (block * n * n + first) * size
        token.rates(data, channels, (field(data, AT.a_param) + channel * own, rate))
        entered, advanced = 0, 0  # the sequence of the last row
        for top in range(0, total, ROWS):
            rows = min(ROWS, total - top)
            for row in range(rows):
                entered, begin = _reaching(data, entered, top + row)
                _enter(data, entered, begin, top + row, block * n, u + row * u_step, kept, first == 0)
            for gate in range(2):
                place = AT.gates + 2 * gate
                w, bias = field(data, place) + weight, field(data, place + 1) + channel * own
                z = z_r if gate else z_i
                token.product(data, (rows, n, channels, u, u_step, w, n * size, bias, z, z_step))
            for row in range(rows):
                advanced, begin = _reaching(data, advanced, top + row)
                inputs = (u + row * u_step + first * 4, z_i + row * z_step, z_r + row * z_step, rate)
                _advance(data, advanced, begin, top + row, channel, channels, inputs, carry)
        item = take(data, 0)


def scratch_floats(n: int, part: int, rows: int, taps: int) -> int:
    """Floats that one thread works in."""
    return 2 * part + min(rows, ROWS) * (n + PAD + 2 * part) + max(taps - 1, 0) * n
