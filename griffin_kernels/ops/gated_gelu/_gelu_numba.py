"""The compiled code of numba.rows: gated_gelu and its gradient, a vector of channels at a time.

    forward:   out = gelu(gate) value
    backward:  dvalue = dout gelu(gate),  dgate = dout value gelu'(gate)

Kernels are as in _native.py, their rows as in _native_rows.py. An item is a few steps by a block of channels.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _native_activations, _native_rows
from griffin_kernels.ops._native import Strided, data_bytes, field, finish, places, take
from griffin_kernels.ops._native_rows import STREAM, RowLanes, row

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements; tensors [B,T,D] of data, channels contiguous."""

    gate: Strided
    value: Strided
    dout: Strided  # backward only
    out: Strided  # or dgate
    dvalue: Strided  # backward only
    items: int  # batch rows times chunks of time times blocks of channels, blocks fastest
    chunks: int  # in a batch row
    chunk: int  # steps in a chunk
    blocks: int  # of channels
    block: int  # channels in a block
    width: int  # D
    time: int  # T
    stream: int  # 1: write outputs past the caches; their rows and blocks must begin on a cache line


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__), *_native_activations.FILES)
"""Sources that the kernels are made from, besides _native.py."""


@row(RowLanes, (0, STREAM))
def _forward_row(v: RowLanes, gate: Any, value: Any, out: Any) -> None:
    made = _native_activations.activated(v, "gelu", v.load(gate))
    v.store(v.multiply(made, v.load(value)), out)


@row(RowLanes, (0, STREAM))
def _backward_row(v: RowLanes, gate: Any, value: Any, dout: Any, dgate: Any, dvalue: Any) -> None:
    made, slope = _native_activations.value_and_slope(v, "gelu", v.load(gate))
    reached = v.load(dout)
    through = v.multiply(reached, v.load(value), slope)
    v.store(v.multiply(reached, made), dvalue)
    v.store(through, dgate)


@_njit
def _at(data: Any, name: int, batch: int, t: int, channel: int) -> int:
    """Address of a channel of one step of a tensor."""
    step = batch * field(data, name + 1) + t * field(data, name + 2)
    place: int = field(data, name) + (step + channel) * data_bytes(data)
    return place


@_njit
def _piece(data: Any, item: int) -> tuple[int, int, int, int, int]:
    """(batch row, first step, step after the last, first channel, channels) of an item."""
    place, channel = item // field(data, AT.blocks), item % field(data, AT.blocks) * field(data, AT.block)
    first = place % field(data, AT.chunks) * field(data, AT.chunk)
    end = min(first + field(data, AT.chunk), field(data, AT.time))
    channels = min(field(data, AT.block), field(data, AT.width) - channel)
    return place // field(data, AT.chunks), first, end, channel, channels


def forward(data: Any) -> None:
    """out."""
    item = take(data, 0)
    while item < field(data, AT.items):
        batch, first, end, channel, channels = _piece(data, item)
        for t in range(first, end):
            gate, value = _at(data, AT.gate, batch, t, channel), _at(data, AT.value, batch, t, channel)
            numbers = (gate, value, _at(data, AT.out, batch, t, channel))
            _forward_row(data, field(data, AT.stream), channels, numbers)
        item = take(data, 0)
    finish(data)


def backward(data: Any) -> None:
    """dgate and dvalue."""
    item = take(data, 0)
    while item < field(data, AT.items):
        batch, first, end, channel, channels = _piece(data, item)
        for t in range(first, end):
            gate, value = _at(data, AT.gate, batch, t, channel), _at(data, AT.value, batch, t, channel)
            dgate, dvalue = _at(data, AT.out, batch, t, channel), _at(data, AT.dvalue, batch, t, channel)
            numbers = (gate, value, _at(data, AT.dout, batch, t, channel), dgate, dvalue)
            _backward_row(data, field(data, AT.stream), channels, numbers)
        item = take(data, 0)
    finish(data)
