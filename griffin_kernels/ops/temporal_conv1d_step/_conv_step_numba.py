"""Compiled code of the native one-token kernels: a convolution's sum over its kept inputs, and the shift of these.

One vector of channels at a time, taps innermost, so that every kept input is read once, counted and moved a row up.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
from llvmlite import ir
from numba import types

from griffin_kernels.ops import _native, _native_activations, _native_names
from griffin_kernels.ops._native import INT64, Lanes, Strided, data_bytes, field, intrinsic, lanes, loop, places, take
from griffin_kernels.ops._native_names import named

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements; channels are contiguous."""

    x: Strided  # data [B, D]
    weight: Strided  # parameters [K, D]
    state: Strided  # data [P, K-1, D]
    items: int  # batch rows times parts, parts fastest
    parts: int  # of the channels
    part: int  # channels of a part
    width: int  # D
    taps: int  # K
    positions: int  # int64 [B], or 0
    slots: int  # int64 [B], or 0
    dst_slots: int  # int64 [B], or 0: new states go where the old ones were
    pad_slot: int  # of rows that only pad, besides all that are negative
    bias: int  # parameters [D], or 0
    y: int  # data [B, D]
    y_step: int  # elements from row to row


AT = places(Fields)

FILES = (__file__, str(_native_names.__file__), *_native_activations.FILES)
"""Sources that the kernel is made from, besides _native.py."""


class TokenRow(NamedTuple):
    """Addresses of a row's first channel, strides in bytes; first: the oldest kept input that counts."""

    x: Any
    weight: Any
    weight_step: Any
    bias: Any
    state: Any
    into: Any  # the state afterwards
    state_step: Any
    taps: Any
    first: Any
    out: Any


def _row(sum_up: bool, shift: bool, wide: bool, activation: str | None = None) -> Any:
    """A numba function ``(data, channels, row)`` on one batch row; see TokenRow for what ``row`` holds.

    sum_up: write y, as floats if ``wide``. shift: put the kept inputs a row up, those before ``first`` becoming 0.
    What is wide has a bias and no activation.
    """

    @intrinsic
    def run(typing: Any, data: Any, channels: Any, row: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            channels = args[1]
            row = TokenRow(*(builder.extract_value(args[2], i) for i in range(len(TokenRow._fields))))
            whole = builder.and_(channels, INT64(-lanes()))
            for start, end, count in ((INT64(0), whole, lanes()), (whole, channels, 1)):
                kinds = (
                    Lanes(builder, count, _native.element_of(data)),
                    Lanes(builder, count, _native.parameters_of(data)),
                )

                def piece(index: Any, kinds: tuple[Lanes, Lanes] = kinds) -> Sequence[Any]:
                    _channels(*kinds, row, index)
                    return ()

                loop(builder, start, end, count, piece)
            return context.get_dummy_value()

        return types.void(data, channels, row), generate

    def _channels(v: Lanes, parameters: Lanes, row: TokenRow, index: Any) -> None:
        b, offset = v.builder, v.builder.mul(index, INT64(_native.BYTES[v.element]))
        own = offset if parameters.element is v.element else b.mul(index, INT64(4))

        def at(start: Any, step: Any, k: Any) -> Any:
            return b.add(b.add(start, b.mul(k, step)), offset)

        def weight(k: Any) -> Any:
            return parameters.load(b.add(b.add(row.weight, b.mul(k, row.weight_step)), own))

        last = b.sub(row.taps, INT64(1))
        x = v.load(b.add(row.x, offset))
        if shift:

            def clear(k: Any) -> Sequence[Any]:
                v.store(v.constant(0.0), at(row.into, row.state_step, k))
                return ()

            loop(b, INT64(0), b.sub(row.first, INT64(1)), 1, clear)
        total = v.constant(0.0)
        if sum_up:
            if wide:
                constant = parameters.load(b.add(row.bias, own))
            else:
                there = b.icmp_signed("!=", row.bias, INT64(0))
                loaded = parameters.load(b.add(b.select(there, row.bias, row.weight), own))
                constant = b.select(there, loaded, v.constant(0.0))
            total = v.multiply_add(x, weight(last), constant)

        def tap(k: Any, total: Any) -> Sequence[Any]:
            kept = v.load(at(row.state, row.state_step, k))
            if sum_up:
                total = v.multiply_add(kept, weight(k), total)
            if shift:
                with b.if_then(b.icmp_signed(">", k, INT64(0))):
                    v.store(kept, at(row.into, row.state_step, b.sub(k, INT64(1))))
            return (total,)

        (total,) = loop(b, row.first, last, 1, tap, (total,))
        if shift:
            with b.if_then(b.icmp_signed(">", last, INT64(0))):
                v.store(x, at(row.into, row.state_step, b.sub(last, INT64(1))))
        if sum_up and wide:
            v.write(total, b.add(row.out, b.mul(index, INT64(4))))
        elif sum_up:
            v.store(_native_activations.activated(v, activation, total), b.add(row.out, offset))

    return run


wide_conv = _row(sum_up=True, shift=False, wide=True)
wide_conv_and_shift = _row(sum_up=True, shift=True, wide=True)
shift_only = _row(sum_up=False, shift=True, wide=False)


def _fill(wide: bool) -> Any:
    """A numba function ``(data, channels, target)`` that writes zeros: data, or floats if ``wide``."""

    @intrinsic
    def run(typing: Any, data: Any, channels: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, channels, target = args
            size = 4 if wide else _native.BYTES[_native.element_of(data)]
            zero = ir.Constant(_native.INT8, 0)
            memset = builder.module.declare_intrinsic("llvm.memset", [_native.INT8.as_pointer(), INT64], None)
            pointer = builder.inttoptr(target, _native.INT8.as_pointer())
            builder.call(memset, [pointer, zero, builder.mul(channels, INT64(size)), ir.Constant(ir.IntType(1), 0)])
            return context.get_dummy_value()

        return types.void(data, channels, target), generate

    return run


zero_data, zero_floats = _fill(wide=False), _fill(wide=True)


@_njit
def slot_of(slots: int, batch: int, pad_slot: int) -> int:
    """The row of the pool that a batch row works on; negative for one that only pads."""
    if slots == 0:
        return batch
    slot = _native.int64_at(slots, batch)
    return -1 if slot == pad_slot else slot


@_njit
def target_of(dst_slots: int, batch: int, pad_slot: int, slot: int) -> int:
    """The row of the pool for the new state of a batch row that works on row ``slot``; negative for none."""
    return slot_of(dst_slots, batch, pad_slot) if dst_slots != 0 else slot


@_njit
def first_kept(positions: int, batch: int, taps: int) -> int:
    """The oldest kept input that belongs to the token's document."""
    return max(0, taps - 1 - _native.int64_at(positions, batch)) if positions != 0 else 0


def _step(activation: str | None) -> Any:
    """A numba function of the pointer that gives y, and the state."""
    conv_only = _row(sum_up=True, shift=False, wide=False, activation=activation)
    conv_and_shift = _row(sum_up=True, shift=True, wide=False, activation=activation)

    @named(f"conv_{activation}_step")
    def each(data: Any) -> None:
        size, parts, part = data_bytes(data), field(data, AT.parts), field(data, AT.part)
        width, taps, positions = field(data, AT.width), field(data, AT.taps), field(data, AT.positions)
        item = take(data, 0)
        while item < field(data, AT.items):
            batch, channel = item // parts, item % parts * part
            channels, offset = min(part, width - channel), channel * size
            out = field(data, AT.y) + batch * field(data, AT.y_step) * size + offset
            pad_slot = field(data, AT.pad_slot)
            slot = slot_of(field(data, AT.slots), batch, pad_slot)
            if slot < 0:
                zero_data(data, channels, out)
            else:
                x = field(data, AT.x) + batch * field(data, AT.x + 1) * size + offset
                own = _native.parameter_bytes(data)
                weight, weight_step = field(data, AT.weight) + channel * own, field(data, AT.weight + 1) * own
                states, state_step = field(data, AT.state) + offset, field(data, AT.state + 2) * size
                target, row_step = (
                    target_of(field(data, AT.dst_slots), batch, pad_slot, slot),
                    field(data, AT.state + 1),
                )
                state, into = states + slot * row_step * size, states + target * row_step * size
                first, bias = first_kept(positions, batch, taps), field(data, AT.bias)
                if bias != 0:
                    bias += channel * own
                row = (x, weight, weight_step, bias, state, into, state_step, taps, first, out)
                if target < 0:
                    conv_only(data, channels, row)
                else:
                    conv_and_shift(data, channels, row)
            item = take(data, 0)

    return each


_plain, _silu, _gelu = _step(None), _step("silu"), _step("gelu")


def step(data: Any) -> None:
    """y, and the state."""
    _plain(data)


def step_silu(data: Any) -> None:
    """silu of the sums, and the state."""
    _silu(data)


def step_gelu(data: Any) -> None:
    """gelu of the sums, and the state."""
    _gelu(data)


STEP = {None: step, "silu": step_silu, "gelu": step_gelu}
"""Kernels by activation."""
