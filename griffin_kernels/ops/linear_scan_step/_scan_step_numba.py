"""Compiled code of the native one-token linear recurrence, a vector of channels at a time."""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
from numba import types

from griffin_kernels.ops import _native
from griffin_kernels.ops._native import INT32, INT64, Lanes, Strided, data_bytes, field, intrinsic, lanes, loop, take
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as gates
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba as conv

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements; channels are contiguous."""

    x: Strided  # data [B, D]
    a: Strided  # data or float [B, D], the kernel's parameters
    h: Strided  # float [P, D]
    y: Strided  # data [B, D]
    items: int  # batch rows times parts, parts fastest
    parts: int  # of the channels
    part: int  # channels of a part
    width: int  # D
    log: int  # 1: a holds logarithms
    reset: int  # bool [B], or 0
    slots: int  # int64 [B], or 0
    dst_slots: int  # int64 [B], or 0: new states go where the old ones were
    pad_slot: int  # of rows that only pad, besides all that are negative


AT = _native.places(Fields)

FILES = (__file__, *conv.FILES)
"""Sources that the kernel is made from, besides _native.py."""

_LOG2_E = 1.4426950216293335
_LOG2_E_REST = 1.9259629911266175e-08
"""The logarithm of e to the base of 2 in a float32, and what that lacks."""
_FIRST, _LAST = -86.0, 89.0
"""Below, e^z counts as 0: float32 has no normal number for it from -87.3 on. Above, it is infinite from 88.7 on."""


def _exp(v: Lanes, z: Any) -> Any:
    """e^z of floats, relative error some 2^-23; 0 at -inf, inf at inf, NaN stays NaN."""
    b = v.builder
    within = v.at_most(v.at_least(z, _FIRST), _LAST)
    high = v.constant(_LOG2_E)
    shifted = v.multiply_add(within, high, v.constant(gates._ROUND))
    whole = v.subtract(shifted, v.constant(gates._ROUND))
    fraction = v.multiply_add(within, high, b.fneg(whole))
    fraction = v.multiply_add(within, v.constant(_LOG2_E_REST), fraction)
    # 2^128 is no float: half of the power, then twice that
    less = b.bitcast(b.sub(b.bitcast(shifted, v.of(INT32)), v.constant(1, INT32)), v.of(v.wide))
    scale, rest = gates._exp2(v, less, fraction)
    half = v.multiply_add(scale, rest, scale)
    return b.select(b.fcmp_ordered("<", z, v.constant(_FIRST)), v.constant(0.0), v.add(half, half))


def _advancing(log: bool, begins: bool) -> Any:
    """A numba function ``(data, channels, numbers)`` on one batch row: its state and its output.

    numbers: addresses of x, a, h, of the state afterwards, 0 where it is not kept, and of y. log: a holds logarithms.
    begins: the state is x, and neither a nor h is read.
    """

    @intrinsic
    def advance(typing: Any, data: Any, channels: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            places = [builder.extract_value(args[2], i) for i in range(len(numbers))]
            whole = builder.and_(args[1], INT64(-lanes()))
            for start, end, count in ((INT64(0), whole, lanes()), (whole, args[1], 1)):
                v = Lanes(builder, count, _native.element_of(data))
                own = Lanes(builder, count, _native.parameters_of(data))

                def piece(index: Any, v: Lanes = v, own: Lanes = own) -> Sequence[Any]:
                    _channels(v, own, index, *places)
                    return ()

                loop(builder, start, end, count, piece)
            return context.get_dummy_value()

        return types.void(data, channels, numbers), generate

    def _channels(v: Lanes, own: Lanes, index: Any, *places: Any) -> None:
        b = v.builder
        sizes = (_native.BYTES[v.element], _native.BYTES[own.element], 4, 4, _native.BYTES[v.element])
        at = [b.add(place, b.mul(index, INT64(size))) for place, size in zip(places, sizes, strict=True)]
        new = v.load(at[0])
        if not begins:
            gate = own.load(at[1])
            new = v.multiply_add(_exp(v, gate) if log else gate, v.read(at[2]), new)
        with b.if_then(b.icmp_signed("!=", places[3], INT64(0))):
            v.write(new, at[3])
        v.store(new, at[4])

    return advance


advance, advance_log, begin = _advancing(False, False), _advancing(True, False), _advancing(False, True)


@_njit
def _at(data: Any, name: int, row: int, channel: int, size: int) -> int:
    """Address of a channel in a row of a tensor whose elements take ``size`` bytes."""
    place: int = field(data, name) + (row * field(data, name + 1) + channel) * size
    return place


def step(data: Any) -> None:
    """y, and the state."""
    size, parts, part = data_bytes(data), field(data, AT.parts), field(data, AT.part)
    item = take(data, 0)
    while item < field(data, AT.items):
        batch, channel = item // parts, item % parts * part
        channels, out = min(part, field(data, AT.width) - channel), _at(data, AT.y, batch, channel, size)
        slot = conv.slot_of(field(data, AT.slots), batch, field(data, AT.pad_slot))
        if slot < 0:
            conv.zero_data(data, channels, out)
        else:
            target = conv.target_of(field(data, AT.dst_slots), batch, field(data, AT.pad_slot), slot)
            into = _at(data, AT.h, target, channel, 4) if target >= 0 else 0
            x, h = _at(data, AT.x, batch, channel, size), _at(data, AT.h, slot, channel, 4)
            numbers = (x, _at(data, AT.a, batch, channel, _native.parameter_bytes(data)), h, into, out)
            if field(data, AT.reset) != 0 and _native.int8_at(field(data, AT.reset), batch) != 0:
                begin(data, channels, numbers)
            elif field(data, AT.log) != 0:
                advance_log(data, channels, numbers)
            else:
                advance(data, channels, numbers)
        item = take(data, 0)
