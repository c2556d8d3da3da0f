"""Compiled code of the native one-token RG-LRU, alone or between a convolution and a gelu: how its work is walked.

An item is some output channels of one gate block, for all batch rows. What enters the gates, a block's channels after
the convolution, is computed anew for each of its items; whoever finishes a block's last item moves its kept inputs, so
that no thread sees them move.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import numba
import torch

from griffin_kernels.ops import _native
from griffin_kernels.ops._native import data_bytes, field, int64_at, intrinsic, take, widen
from griffin_kernels.ops.rg_lru import _numba_tiles as gates
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.rg_lru_step import _numba_tiles as tiles
from griffin_kernels.ops.rg_lru_step._numba_tiles import (
    advance,
    advance_gated,
    begin,
    begin_gated,
    product,
    rates,
)
from griffin_kernels.ops.temporal_conv1d_step import _numba as conv
from griffin_kernels.ops.temporal_conv1d_step._numba import (
    first_kept,
    shift_only,
    slot_of,
    wide_conv,
    wide_conv_and_shift,
    zero_data,
    zero_floats,
)

_njit: Any = numba.njit

FIELDS = (
    "counter",  # next work item; the kernel advances it
    "workers",  # threads that have begun; they advance it
    "items",  # gate blocks times parts, parts fastest
    "parts",  # of a gate block's channels
    "part",  # channels of a part
    "n",  # channels of a gate block
    "batch",  # B
    "width",  # D
    "positions",  # int64 [B], or 0
    "slots",  # int64 [B], or 0
    "x",  # data [B, D]
    "x_row",
    "y",  # data [B, D], or 0: the output is the state
    "y_row",
    "out",  # data [B, D] contiguous
    "a_param",  # data [D]
    "weight_i",  # data [H, n, n]
    "bias_i",  # data [D]
    "weight_r",
    "bias_r",
    "h",  # float [P, D]
    "h_slot",
    "taps",  # K, or 0: no convolution, the gates see x
    "conv_weight",  # data [K, D]
    "conv_bias",  # data [D]
    "state",  # data [P, K-1, D]
    "state_slot",
    "state_row",
    "scratch",
    "scratch_bytes",  # of each worker
    "finished",  # int64 [H]: items of a block that are done
)
"""Names of the integers. Addresses and strides in bytes; channels are contiguous."""

ROWS = 48
"""Batch rows worked on at a time: their inputs and gates stay in the second-level cache."""
PAD = 16
"""Floats between rows of what enters the gates, which else would meet in the same cache sets."""

_COUNTER, _WORKERS = 0, 1
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
def _enter(data: Any, row: int, channel: int, shift: int, u: int) -> None:
    """What a batch row's gate block sees, as floats: x, or its convolution. shift: move the kept inputs too."""
    size, n, taps = data_bytes(data), field(data, 5), field(data, 22)
    offset = channel * size
    x = field(data, 10) + row * field(data, 11) + offset
    slot = slot_of(field(data, 9), row)
    if slot < 0:
        zero_floats(data, n, u)
    elif taps == 0:
        widen(data, 1, n, x, 0, u, 0)
    else:
        numbers = (
            x,
            field(data, 23) + offset,
            field(data, 7) * size,
            field(data, 24) + offset,
            field(data, 25) + slot * field(data, 26) + offset,
            field(data, 27),
            taps,
            first_kept(field(data, 8), row, taps),
            u,
        )
        if shift:
            wide_conv_and_shift(data, n, numbers)
        else:
            wide_conv(data, n, numbers)


@_njit
def _shift(data: Any, channel: int) -> None:
    """Move the kept inputs of a gate block, in every batch row."""
    size, taps = data_bytes(data), field(data, 22)
    for row in range(field(data, 6)):
        slot = slot_of(field(data, 9), row)
        if slot >= 0:
            x = field(data, 10) + row * field(data, 11) + channel * size
            state = field(data, 25) + slot * field(data, 26) + channel * size
            first = first_kept(field(data, 8), row, taps)
            shift_only(data, field(data, 5), (x, 0, 0, 0, state, field(data, 27), taps, first, 0))


@_njit
def _advance(data: Any, row: int, channel: int, channels: int, u: int, z_i: int, z_r: int, rate: int) -> None:
    """One batch row's state and output, for some channels."""
    size, positions = data_bytes(data), field(data, 8)
    out = field(data, 14) + (row * field(data, 7) + channel) * size
    slot = slot_of(field(data, 9), row)
    if slot < 0:
        zero_data(data, channels, out)
        return
    h = field(data, 20) + slot * field(data, 21) + channel * 4
    begins = positions != 0 and int64_at(positions, row) == 0
    if field(data, 12) == 0:
        numbers = (u, z_i, z_r, rate, h, 0, out)
        if begins:
            begin(data, channels, numbers)
        else:
            advance(data, channels, numbers)
    else:
        y = field(data, 12) + row * field(data, 13) + channel * size
        gated = (u, z_i, z_r, rate, h, y, out)
        if begins:
            begin_gated(data, channels, gated)
        else:
            advance_gated(data, channels, gated)


def step(data: Any) -> None:
    """The output and both states."""
    size, parts, part, n, batch = data_bytes(data), field(data, 3), field(data, 4), field(data, 5), field(data, 6)
    rate = field(data, 28) + take(data, _WORKERS) * field(data, 29)
    u = rate + part * 4
    u_step, z_step = (n + PAD) * 4, part * 4
    z_i = u + min(batch, ROWS) * u_step
    z_r = z_i + min(batch, ROWS) * z_step
    item = take(data, _COUNTER)
    while item < field(data, 2):
        block, first = item // parts, item % parts * part
        channels, channel = min(part, n - first), block * n + first
        weight = (block * n * n + first) * size
        rates(data, channels, (field(data, 15) + channel * size, rate, _factor()))
        for top in range(0, batch, ROWS):
            rows = min(ROWS, batch - top)
            for row in range(rows):
                _enter(data, top + row, block * n, parts == 1, u + row * u_step)
            common = (rows, n, channels, u, u_step)
            for gate in range(2):
                w, bias = field(data, 16 + 2 * gate) + weight, field(data, 17 + 2 * gate) + channel * size
                z = z_r if gate else z_i
                product(data, (*common, w, n * size, bias, z, z_step))
            for row in range(rows):
                mine = u + row * u_step + first * 4
                _advance(data, top + row, channel, channels, mine, z_i + row * z_step, z_r + row * z_step, rate)
        if parts > 1 and field(data, 22) != 0 and _finish(data, field(data, 30) + block * 8) == parts - 1:
            _shift(data, block * n)
        item = take(data, _COUNTER)


def scratch_floats(n: int, part: int, batch: int) -> int:
    """Floats that one thread works in."""
    return part + min(batch, ROWS) * (n + PAD + 2 * part)


def compiled(dtype: torch.dtype) -> Any:
    """The kernel for data of ``dtype`` as a ctypes function of the address of its FIELDS."""
    return _native.compiled(step, dtype, (__file__, tiles.__file__, gates.__file__, conv.__file__))
