"""Compiled code of the native one-token RG-LRU, alone or between a convolution and a gelu: how its work is walked.

An item is some output channels of one gate block, for all batch rows. What enters the gates, a block's channels after
the convolution, is computed anew for each of its items; whoever finishes a block's last item moves its kept inputs, so
that no thread sees them move.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _gelu, _native
from griffin_kernels.ops._native import Strided, data_bytes, field, int64_at, intrinsic, places, take, widen
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as gates
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.rg_lru_step import _lru_step_numba_tiles as tiles
from griffin_kernels.ops.rg_lru_step._lru_step_numba_tiles import (
    advance,
    advance_gated,
    begin,
    begin_gated,
    product,
    rates,
)
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba as conv
from griffin_kernels.ops.temporal_conv1d_step._conv_step_numba import (
    first_kept,
    shift_only,
    slot_of,
    wide_conv,
    wide_conv_and_shift,
    zero_data,
    zero_floats,
)

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements; channels are contiguous."""

    x: Strided  # data [B, D]
    y: Strided  # data [B, D], or 0: the output is the state
    h: Strided  # float [P, D]
    state: Strided  # data [P, K-1, D], or 0
    gates: tuple[int, int, int, int]  # data [H, n, n] and [D] of the input gate, then of the recurrence gate
    workers: int  # threads that have begun; they advance it
    items: int  # gate blocks times parts, parts fastest
    parts: int  # of a gate block's channels
    part: int  # channels of a part
    n: int  # channels of a gate block
    batch: int  # B
    width: int  # D
    positions: int  # int64 [B], or 0
    slots: int  # int64 [B], or 0
    out: int  # data [B, D] contiguous
    a_param: int  # data [D]
    taps: int  # K, or 0: no convolution, the gates see x
    conv_weight: int  # data [K, D]
    conv_bias: int  # data [D]
    scratch: int
    scratch_bytes: int  # of each worker
    finished: int  # int64 [H]: items of a block that are done, or 0


AT = places(Fields)

FILES = (__file__, str(tiles.__file__), str(gates.__file__), str(_gelu.__file__), str(conv.__file__))
"""Sources that the kernel is made from, besides _native.py."""

ROWS = 48
"""Batch rows worked on at a time: their inputs and gates stay in the second-level cache."""
PAD = 16
"""Floats between rows of what enters the gates, which else would meet in the same cache sets."""

# log2 a = _FACTOR softplus(a_param) r
_FACTOR = -DECAY * 1.4426950408889634


@intrinsic
def _finish(typing: Any, data: Any, address: Any) -> Any:
    """Add 1 to the integer at an address, after all that this thread has read, and give what it was."""
    from numba import types

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[1], _native.INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, _native.INT64(1), "acq_rel")

    return types.int64(data, types.int64), generate


@intrinsic
def _factor(typing: Any) -> Any:
    """_FACTOR as float32."""
    from numba import types

    return types.float32(), lambda context, builder, signature, args: _native.FLOAT(_FACTOR)


@_njit
def _row(data: Any, name: int, row: int, channel: int, size: int) -> int:
    """Address of a channel in a row of a tensor whose elements take ``size`` bytes."""
    return field(data, name) + (row * field(data, name + 1) + channel) * size


@_njit
def _enter(data: Any, row: int, channel: int, shift: int, u: int) -> None:
    """What a batch row's gate block sees, as floats: x, or its convolution. shift: move the kept inputs too."""
    size, n, taps = data_bytes(data), field(data, AT.n), field(data, AT.taps)
    x, slot = _row(data, AT.x, row, channel, size), slot_of(field(data, AT.slots), row)
    if slot < 0:
        zero_floats(data, n, u)
    elif taps == 0:
        widen(data, 1, n, x, 0, u, 0)
    else:
        numbers = (
            x,
            field(data, AT.conv_weight) + channel * size,
            field(data, AT.width) * size,
            field(data, AT.conv_bias) + channel * size,
            _row(data, AT.state, slot, channel, size),
            field(data, AT.state + 2) * size,
            taps,
            first_kept(field(data, AT.positions), row, taps),
            u,
        )
        if shift:
            wide_conv_and_shift(data, n, numbers)
        else:
            wide_conv(data, n, numbers)


@_njit
def _shift(data: Any, channel: int) -> None:
    """Move the kept inputs of a gate block, in every batch row."""
    size, taps = data_bytes(data), field(data, AT.taps)
    for row in range(field(data, AT.batch)):
        slot = slot_of(field(data, AT.slots), row)
        if slot >= 0:
            x, state = _row(data, AT.x, row, channel, size), _row(data, AT.state, slot, channel, size)
            first = first_kept(field(data, AT.positions), row, taps)
            shift_only(data, field(data, AT.n), (x, 0, 0, 0, state, field(data, AT.state + 2) * size, taps, first, 0))


@_njit
def _advance(data: Any, row: int, channel: int, channels: int, u: int, z_i: int, z_r: int, rate: int) -> None:
    """One batch row's state and output, for some channels."""
    size, positions = data_bytes(data), field(data, AT.positions)
    out = field(data, AT.out) + (row * field(data, AT.width) + channel) * size
    slot = slot_of(field(data, AT.slots), row)
    if slot < 0:
        zero_data(data, channels, out)
        return
    h = _row(data, AT.h, slot, channel, 4)
    begins = positions != 0 and int64_at(positions, row) == 0
    if field(data, AT.y) == 0:
        numbers = (u, z_i, z_r, rate, h, 0, out)
        if begins:
            begin(data, channels, numbers)
        else:
            advance(data, channels, numbers)
    else:
        gated = (u, z_i, z_r, rate, h, _row(data, AT.y, row, channel, size), out)
        if begins:
            begin_gated(data, channels, gated)
        else:
            advance_gated(data, channels, gated)


def step(data: Any) -> None:
    """The output and both states."""
    size, parts, part = data_bytes(data), field(data, AT.parts), field(data, AT.part)
    n, batch = field(data, AT.n), field(data, AT.batch)
    rate = field(data, AT.scratch) + take(data, AT.workers) * field(data, AT.scratch_bytes)
    u = rate + part * 4
    u_step, z_step = (n + PAD) * 4, part * 4
    z_i = u + min(batch, ROWS) * u_step
    z_r = z_i + min(batch, ROWS) * z_step
    item = take(data, 0)
    while item < field(data, AT.items):
        block, first = item // parts, item % parts * part
        channels, channel = min(part, n - first), block * n + first
        weight = (block * n * n + first) * size
        rates(data, channels, (field(data, AT.a_param) + channel * size, rate, _factor()))
        for top in range(0, batch, ROWS):
            rows = min(ROWS, batch - top)
            for row in range(rows):
                _enter(data, top + row, block * n, parts == 1, u + row * u_step)
            common = (rows, n, channels, u, u_step)
            for gate in range(2):
                own = AT.gates + 2 * gate
                w, bias = field(data, own) + weight, field(data, own + 1) + channel * size
                z = z_r if gate else z_i
                product(data, (*common, w, n * size, bias, z, z_step))
            for row in range(rows):
                mine = u + row * u_step + first * 4
                _advance(data, top + row, channel, channels, mine, z_i + row * z_step, z_r + row * z_step, rate)
        if parts > 1 and field(data, AT.taps) != 0 and _finish(data, field(data, AT.finished) + block * 8) == parts - 1:
            _shift(data, block * n)
        item = take(data, 0)


def scratch_floats(n: int, part: int, batch: int) -> int:
    """Floats that one thread works in."""
    return part + min(batch, ROWS) * (n + PAD + 2 * part)
