"""Compiled code of the native one-token RG-LRU, alone or between a convolution and a gelu: how its work is walked.

An item is some output channels of one gate block, for all batch rows. What enters the gates, a block's channels after
the convolution, is computed anew for each of its items; whoever finishes a block's last item moves its kept inputs, so
that no thread sees them move.

Inner loops are emitted as vectors. A product keeps some batch rows by some vectors of columns in registers and walks
down the weights, which are read where they lie, in the data's dtype: several vectors of columns at a time are whole
cache lines, and a row of weights is read once for up to six batch rows.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
from numba import types

from griffin_kernels.ops import _gelu, _native
from griffin_kernels.ops._native import FLOAT, INT64, Lanes, data_bytes, field, intrinsic, parameter_bytes, take, widen
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as gates
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba as conv
from griffin_kernels.ops.temporal_conv1d_step._conv_step_numba import slot_of, target_of

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to the kernel. Addresses in bytes, strides in elements; channels are contiguous."""

    x: _native.Strided  # data [B, D]
    y: _native.Strided  # data [B, D], or 0: the output is the state
    h: _native.Strided  # float [P, D]
    state: _native.Strided  # data [P, K-1, D], or 0
    gates: tuple[int, int, int, int]  # data [H, n, n], parameters [D] of the input gate, then of the recurrence gate
    workers: int  # threads that have begun; they advance it
    items: int  # gate blocks times parts, parts fastest
    parts: int  # of a gate block's channels
    part: int  # channels of a part
    n: int  # channels of a gate block
    batch: int  # B
    width: int  # D
    positions: int  # int64 [B], or 0
    slots: int  # int64 [B], or 0
    dst_slots: int  # int64 [B], or 0: new states go where the old ones were
    pad_slot: int  # of rows that only pad, besides all that are negative
    out: int  # data [B, D]
    out_step: int  # elements from row to row
    a_param: int  # parameters [D]
    taps: int  # K, or 0: no convolution, the gates see x
    conv_weight: int  # parameters [K, D]
    conv_bias: int  # parameters [D]
    scratch: int
    scratch_bytes: int  # of each worker
    finished: int  # int64 [H]: items of a block that are done, or 0


AT = _native.places(Fields)

FILES = (__file__, *conv.FILES)
"""Sources that the kernel is made from, besides _native.py."""

ROWS = 48
"""Batch rows worked on at a time: their inputs and gates stay in the second-level cache."""
PAD = 16
"""Floats between rows of what enters the gates, which else would meet in the same cache sets."""


def _tiles() -> tuple[tuple[int, ...], int, int]:
    """(batch rows of a tile, largest first; vectors of columns of a tile; the same for one row alone)."""
    return ((6, 4, 2, 1), 4, 16) if _native.registers() == 32 else ((4, 2, 1), 2, 8)


class Product(NamedTuple):
    """Z = A W + bias for batch rows A [rows, depth] floats, W [depth, columns] data, bias [columns] parameters.

    Z is floats. Addresses; steps are bytes from row to row.
    """

    rows: Any
    depth: Any
    columns: Any
    a: Any
    a_step: Any
    w: Any
    w_step: Any
    bias: Any
    z: Any
    z_step: Any


@intrinsic
def product(typing: Any, data: Any, numbers: Any) -> Any:
    """``(data, numbers)``: see Product for what ``numbers`` holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        p = Product(*(builder.extract_value(args[1], i) for i in range(len(Product._fields))))
        heights, many, alone = _tiles()
        with builder.if_else(builder.icmp_signed("==", p.rows, INT64(1))) as (one, more):
            with one:
                _columns(builder, data, p, (alone, many, 1), (1,))
            with more:
                _columns(builder, data, p, (many, 1), heights)
        return context.get_dummy_value()

    return types.void(data, numbers), generate


def _columns(builder: Any, data: Any, p: Product, vectors: Sequence[int], heights: Sequence[int]) -> None:
    """All columns: tiles of so many vectors, the widest first, then single columns."""
    done = INT64(0)
    for count, step in (*((_native.lanes(), v) for v in vectors), (1, 1)):
        v, own = Lanes(builder, count, _native.element_of(data)), Lanes(builder, count, _native.parameters_of(data))
        left = builder.sub(p.columns, done)
        end = builder.add(done, builder.sub(left, builder.srem(left, INT64(count * step))))

        def body(column: Any, v: Lanes = v, own: Lanes = own, step: int = step) -> Sequence[Any]:
            _rows(v, own, p, column, step, heights)
            return ()

        _native.loop(builder, done, end, count * step, body)
        done = end


def _rows(v: Lanes, own: Lanes, p: Product, column: Any, vectors: int, heights: Sequence[int]) -> None:
    """All batch rows of some vectors of columns; own: lanes of parameters."""
    b, size, own_size = v.builder, _native.BYTES[v.element], _native.BYTES[own.element]
    offset, done = b.mul(column, INT64(size)), INT64(0)
    w, bias = b.add(p.w, offset), b.add(p.bias, offset if own_size == size else b.mul(column, INT64(own_size)))
    z = b.add(p.z, b.mul(column, INT64(4)))
    for height in heights:

        def body(first: Any, height: int = height) -> Sequence[Any]:
            begins = [own.load(b.add(bias, INT64(own_size * v.count * c))) for c in range(vectors)]
            start = b.add(p.a, b.mul(first, p.a_step))

            def step(k: Any, w: Any, *sums: Any) -> Sequence[Any]:
                place = b.add(start, b.mul(k, INT64(4)))
                weights = [v.load(b.add(w, INT64(size * v.count * c))) for c in range(vectors)]
                results = []
                for r in range(height):
                    at = b.add(place, b.mul(p.a_step, INT64(r)))
                    factor = v.broadcast(b.load(b.inttoptr(at, FLOAT.as_pointer()), align=4))
                    for c in range(vectors):
                        results.append(v.multiply_add(factor, weights[c], sums[r * vectors + c]))
                return b.add(w, p.w_step), *results

            _, *sums = _native.loop(b, INT64(0), p.depth, 1, step, (w, *begins * height))
            for r in range(height):
                target = b.add(z, b.mul(b.add(first, INT64(r)), p.z_step))
                for c in range(vectors):
                    v.write(sums[r * vectors + c], b.add(target, INT64(4 * v.count * c)))
            return ()

        left = b.sub(p.rows, done)
        end = b.add(done, b.sub(left, b.srem(left, INT64(height))))
        _native.loop(b, done, end, height, body)
        done = end


def _softplus(v: Lanes, value: Any) -> Any:
    """log(1 + exp(value)), with its relative accuracy kept where exp(value) is far below 1."""
    b = v.builder
    size = b.select(b.fcmp_ordered("<", value, v.constant(0.0)), value, b.fneg(value))
    log2 = v.at_least(v.multiply(size, v.constant(1 / math.log(2))), -126.0)
    shifted = v.add(log2, v.constant(gates._ROUND))
    scale, rest = gates._exp2(v, shifted, v.subtract(log2, v.subtract(shifted, v.constant(gates._ROUND))))
    w = v.multiply_add(scale, rest, scale)
    # log(1 + w) = 2 artanh(t), t = w / (2 + w), a series in t^2 <= 1/9
    t = v.divide(w, v.add(w, v.constant(2.0)))
    square = v.multiply(t, t)
    series = v.constant(1 / 15)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        series = v.multiply_add(series, square, v.constant(1 / odd))
    return v.multiply_add(v.multiply(v.constant(2.0), t), series, v.at_least(value, 0.0))


def _per_channel(emit: Any, element: Any = _native.element_of) -> Any:
    """A numba function ``(data, channels, numbers)`` that emits ``emit(lanes, index, *numbers)`` for every vector.

    element: of the lanes, from the type of the pointer.
    """

    @intrinsic
    def run(typing: Any, data: Any, channels: Any, numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            unpacked = [builder.extract_value(args[2], i) for i in range(len(numbers))]
            whole = builder.and_(args[1], INT64(-_native.lanes()))
            for start, end, count in ((INT64(0), whole, _native.lanes()), (whole, args[1], 1)):
                v = Lanes(builder, count, element(data))

                def piece(index: Any, v: Lanes = v) -> Sequence[Any]:
                    emit(v, index, *unpacked)
                    return ()

                _native.loop(builder, start, end, count, piece)
            return context.get_dummy_value()

        return types.void(data, channels, numbers), generate

    return run


def _float_at(v: Lanes, start: Any, index: Any) -> Any:
    return v.builder.add(start, v.builder.mul(index, INT64(4)))


def _data_at(v: Lanes, start: Any, index: Any) -> Any:
    return v.builder.add(start, v.builder.mul(index, INT64(_native.BYTES[v.element])))


def _rates(v: Lanes, index: Any, a_param: Any, rate: Any) -> None:
    """log2 a = rate r. a_param: parameters; rate: floats."""
    value = v.multiply(_softplus(v, v.load(_data_at(v, a_param, index))), v.constant(-DECAY * 1.4426950408889634))
    v.write(value, _float_at(v, rate, index))


rates = _per_channel(_rates, _native.parameters_of)


def _gelu_of(v: Lanes, y: Any) -> Any:
    cubic = v.multiply_add(v.multiply(y, y), v.constant(_gelu.CUBIC), v.constant(1.0))
    share, _ = gates.sigmoid(v, v.multiply(y, cubic, v.constant(2 * _gelu.SCALE)))
    return v.multiply(y, share)


def _advancing(gated: bool, begins: bool) -> Any:
    """The state of one batch row and the output.

    gated: the output is the state times gelu(y). begins: a document begins: the state before counts as 0, m as 1.
    """

    @_per_channel
    def advance(v: Lanes, index: Any, *at: Any) -> None:
        u, z_i, z_r, rate, h, into, y, out = at
        entering, state = v.read(_float_at(v, u, index)), _float_at(v, h, index)
        argument = v.read(_float_at(v, z_i, index))
        if begins:
            new = v.multiply(gates.sigmoid(v, argument)[0], entering)
        else:
            found = gates.gates_of(v, argument, v.read(_float_at(v, z_r, index)), v.read(_float_at(v, rate, index)))
            new = v.multiply_add(found.a, v.read(state), v.multiply(found.i, entering, found.m))
        v.write(new, _float_at(v, into, index))
        result = v.multiply(new, _gelu_of(v, v.load(_data_at(v, y, index)))) if gated else new
        v.store(result, _data_at(v, out, index))

    return advance


advance, begin = _advancing(False, False), _advancing(False, True)
advance_gated, begin_gated = _advancing(True, False), _advancing(True, True)


@intrinsic
def _finish(typing: Any, data: Any, address: Any) -> Any:
    """Add 1 to the integer at an address, after all that this thread has read, and give what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[1], INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, INT64(1), "acq_rel")

    return types.int64(data, types.int64), generate


@_njit
def _row(data: Any, name: int, row: int, channel: int, size: int) -> int:
    """Address of a channel in a row of a tensor whose elements take ``size`` bytes."""
    return field(data, name) + (row * field(data, name + 1) + channel) * size


@_njit
def _slot(data: Any, row: int) -> int:
    """The row of the pool that a batch row works on; negative for none."""
    return slot_of(field(data, AT.slots), row, field(data, AT.pad_slot))


@_njit
def _target(data: Any, row: int, slot: int) -> int:
    """The row of the pool for its new state; negative for none."""
    return target_of(field(data, AT.dst_slots), row, field(data, AT.pad_slot), slot)


@_njit
def _enter(data: Any, row: int, channel: int, shift: int, u: int) -> None:
    """What a batch row's gate block sees, as floats: x, or its convolution. shift: move the kept inputs too."""
    size, own, n, taps = data_bytes(data), parameter_bytes(data), field(data, AT.n), field(data, AT.taps)
    x, slot = _row(data, AT.x, row, channel, size), _slot(data, row)
    if slot < 0:
        conv.zero_floats(data, n, u)
    elif taps == 0:
        widen(data, 1, n, x, 0, u, 0)
    else:
        target = _target(data, row, slot)
        numbers = (
            x,
            field(data, AT.conv_weight) + channel * own,
            field(data, AT.width) * own,
            field(data, AT.conv_bias) + channel * own,
            _row(data, AT.state, slot, channel, size),
            _row(data, AT.state, target, channel, size),
            field(data, AT.state + 2) * size,
            taps,
            conv.first_kept(field(data, AT.positions), row, taps),
            u,
        )
        if shift and target >= 0:
            conv.wide_conv_and_shift(data, n, numbers)
        else:
            conv.wide_conv(data, n, numbers)


@_njit
def _shift(data: Any, channel: int) -> None:
    """Move the kept inputs of a gate block, in every batch row."""
    size, taps = data_bytes(data), field(data, AT.taps)
    for row in range(field(data, AT.batch)):
        slot = _slot(data, row)
        target = _target(data, row, slot)
        if slot >= 0 and target >= 0:
            x, state = _row(data, AT.x, row, channel, size), _row(data, AT.state, slot, channel, size)
            into, step = _row(data, AT.state, target, channel, size), field(data, AT.state + 2) * size
            first = conv.first_kept(field(data, AT.positions), row, taps)
            conv.shift_only(data, field(data, AT.n), (x, 0, 0, 0, state, into, step, taps, first, 0))


@_njit
def _advance(data: Any, row: int, channel: int, channels: int, u: int, z_i: int, z_r: int, rate: int) -> None:
    """One batch row's state and output, for some channels."""
    size, positions = data_bytes(data), field(data, AT.positions)
    out = field(data, AT.out) + (row * field(data, AT.out_step) + channel) * size
    slot = _slot(data, row)
    if slot < 0:
        conv.zero_data(data, channels, out)
        return
    h, target = _row(data, AT.h, slot, channel, 4), _target(data, row, slot)
    # a state that is kept nowhere goes over what has been read by then
    into = z_i if target < 0 else _row(data, AT.h, target, channel, 4)
    begins = positions != 0 and _native.int64_at(positions, row) == 0
    gated = field(data, AT.y) != 0
    numbers = (u, z_i, z_r, rate, h, into, _row(data, AT.y, row, channel, size), out)
    if begins and gated:
        begin_gated(data, channels, numbers)
    elif begins:
        begin(data, channels, numbers)
    elif gated:
        advance_gated(data, channels, numbers)
    else:
        advance(data, channels, numbers)


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
        rates(data, channels, (field(data, AT.a_param) + channel * parameter_bytes(data), rate))
        for top in range(0, batch, ROWS):
            rows = min(ROWS, batch - top)
            for row in range(rows):
                _enter(data, top + row, block * n, parts == 1, u + row * u_step)
            common = (rows, n, channels, u, u_step)
            for gate in range(2):
                own = AT.gates + 2 * gate
                w, bias = field(data, own) + weight, field(data, own + 1) + channel * parameter_bytes(data)
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
