"""The compiled code of the numba variants: linear_scan and its gradient, by rows of channels.

A row is what one time step holds of one block of channels: contiguous, so that it is read, combined with the carry and
written a vector at a time. The carry of a block, in the accumulator's dtype, stays in the first-level cache for a whole
sequence. Kernels are as in _native.py, their rows as in _native_rows.py.

    forward:   c_t = a_t c_{t-1} + x_t              h_t = c_t
    backward:  g_t = dh_t + c_{t+1}                 dx_t = g_t, da_t = g_t h_{t-1}, c_t = a_t g_t

With time cut into chunks, ``reduce`` finds what each chunk does to its carry, c -> product * c + last; ``carries`` runs
that over the chunks, in order; forward or backward then starts every chunk from its own carry. A product of gates
beyond [-1, 1] may overflow where the carry does not, or underflow and grow again: it becomes NaN, and ``carries`` goes
through such a chunk step by step. A chunk with a reset hands on its last, whatever entered it.
"""

# Python's types end where numba's begin.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
from llvmlite import ir

from griffin_kernels.ops import _native_rows
from griffin_kernels.ops._native import (
    INT8,
    INT32,
    Strided,
    data_bytes,
    field,
    finish,
    int32_at,
    int64_at,
    places,
    take,
)
from griffin_kernels.ops._native_rows import (
    STREAM,
    RowLanes,
    bounds,
    copy,
    input_at,
    is_set,
    row,
    wide_bytes,
    zero,
)

_njit: Any = numba.njit


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements. Data unless said otherwise; wide: accumulator."""

    reset: Strided  # bool [B, T], or 0
    a: Strided
    x: Strided  # x, or dh
    h: Strided  # read by the gradient
    items: int  # slots * blocks; a slot is one chunk of one sequence
    blocks: int  # blocks of channels
    block: int  # channels in a block
    width: int  # D
    time: int  # T
    sequences: int  # N
    chunk: int  # steps in a chunk
    chunks: int  # chunks of every sequence, where all are equally long
    offsets: int  # int32 [N+1] of packed sequences, or 0
    slots: int  # int64 [N+1]: slot of each packed sequence's first chunk, or 0
    backwards: int  # 1: this kernel visits time from the last step to the first
    hints: int  # STREAM + AHEAD: how the rows of forward and backward are moved
    gradient: int  # 1: reduce for the gradient
    initial: int  # wide [N, D]: carry that enters a sequence, or 0
    final: int  # wide [N, D]: the running carry of a sequence's last chunk; what leaves the sequence
    carries: int  # wide [slots, D]: carry of every other chunk, or 0 where time is not cut
    products: int  # wide [slots, D], with carries
    before: int  # wide [N, D]: h0, for the gradient, or 0
    out: int  # h, or dx; [B, T, D] contiguous
    da: int  # [B, T, D] contiguous


AT = places(Fields)

FILES = (__file__, str(_native_rows.__file__))
"""Sources that the kernels are made from, besides _native.py."""

AHEAD = 2
"""Hint: ask for the next row of the inputs early."""


class _ChunkLanes(RowLanes):
    """Lanes that know when a product is of no use."""

    def grown(self, product: Any, gate: Any) -> Any:
        """The product with one more gate, NaN from the first gate beyond [-1, 1] on."""
        beyond = self.builder.fcmp_ordered(">", self._call("fabs", gate), self.constant(1.0))
        return self.builder.select(beyond, self.constant(math.nan), self.multiply(gate, product))

    def lost(self, value: Any) -> Any:
        """Where a value is NaN."""
        return self.builder.fcmp_unordered("uno", value, value)

    def endless(self, value: Any) -> Any:
        """Where a value is infinite or NaN."""
        return self.lost(self.builder.fsub(value, value))


class _HintedLanes(RowLanes):
    """Lanes that know one more hint."""

    def ahead(self, *addresses: Any) -> None:
        """With the hint, ask for the cache line of data at these channels of other rows; anywhere is safe."""
        if self.hints & AHEAD:
            kinds = [INT8.as_pointer(), INT32, INT32, INT32]
            module, name = self.builder.module, "llvm.prefetch.p0"
            function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
            for address in addresses:
                line = self.builder.bitcast(self.data_at(address), kinds[0])
                self.builder.call(function, [line, INT32(0), INT32(3), INT32(1)])  # read, keep in L1, data


_hinted_row = row(_HintedLanes, (0, STREAM, AHEAD, STREAM | AHEAD))


@_hinted_row
def _forward_row(v: _HintedLanes, x: Any, a: Any, out: Any, carry: Any, next_x: Any, next_a: Any) -> None:
    v.ahead(next_x, next_a)
    value = v.multiply_add(v.load(a), v.read(carry), v.load(x))
    v.write(value, carry)
    v.store(value, out)


@row(_ChunkLanes)
def _forward_reduce_row(v: _ChunkLanes, x: Any, a: Any, product: Any, last: Any) -> None:
    gate = v.load(a)
    v.write(v.multiply_add(gate, v.read(last), v.load(x)), last)
    v.write(v.grown(v.read(product), gate), product)


def _gradient(v: RowLanes, before: Any, dh: Any, a: Any, dx: Any, da: Any, carry: Any) -> None:
    g = v.add(v.load(dh), v.read(carry))
    v.write(v.multiply(v.load(a), g), carry)
    v.store(g, dx)
    v.store(v.multiply(g, before), da)


@_hinted_row
def _backward_row(
    v: _HintedLanes,
    dh: Any,
    a: Any,
    before: Any,
    dx: Any,
    da: Any,
    carry: Any,
    next_dh: Any,
    next_a: Any,
    next_before: Any,
) -> None:
    v.ahead(next_dh, next_a, next_before)
    _gradient(v, v.load(before), dh, a, dx, da, carry)


@row()
def _backward_first_row(v: RowLanes, dh: Any, a: Any, before: Any, dx: Any, da: Any, carry: Any) -> None:
    _gradient(v, v.read(before), dh, a, dx, da, carry)


@row()
def _backward_stop_row(v: RowLanes, dh: Any, dx: Any, da: Any, carry: Any) -> None:
    # no state entered this step: neither a nor an earlier step has a gradient, whatever g is
    v.store(v.add(v.load(dh), v.read(carry)), dx)
    v.store(v.zero(), da)
    v.write(v.zero(), carry)


@row(_ChunkLanes)
def _backward_reduce_row(v: _ChunkLanes, dh: Any, a: Any, product: Any, last: Any) -> None:
    gate = v.load(a)
    v.write(v.multiply(gate, v.add(v.load(dh), v.read(last))), last)
    v.write(v.grown(v.read(product), gate), product)


@row(_ChunkLanes)
def _carry_row(v: _ChunkLanes, product: Any, last: Any, carry: Any) -> None:
    # last: what the chunk makes of a zero carry, replaced by the carry that enters it
    entering, factor, own = v.read(carry), v.read(product), v.read(last)
    walk = v.builder.or_(v.lost(factor), v.endless(own))
    v.write(v.builder.select(walk, entering, v.multiply_add(factor, entering, own)), carry)
    v.write(v.builder.select(walk, v.constant(math.nan), factor), product)
    v.write(entering, last)


@row()
def _swap_row(v: RowLanes, last: Any, carry: Any) -> None:
    entering = v.read(carry)
    v.write(v.read(last), carry)
    v.write(entering, last)


@row(_ChunkLanes)
def _forward_walk_row(v: _ChunkLanes, x: Any, a: Any, product: Any, carry: Any) -> None:
    state = v.read(carry)
    after = v.multiply_add(v.load(a), state, v.load(x))
    v.write(v.builder.select(v.lost(v.read(product)), after, state), carry)


@row(_ChunkLanes)
def _backward_walk_row(v: _ChunkLanes, dh: Any, a: Any, product: Any, carry: Any) -> None:
    state = v.read(carry)
    after = v.multiply(v.load(a), v.add(v.load(dh), state))
    v.write(v.builder.select(v.lost(v.read(product)), after, state), carry)


@row()
def _one_row(v: RowLanes, target: Any) -> None:
    v.write(v.constant(1.0), target)


_zero_row, _copy_row = row()(zero), row()(copy)


@_njit(error_model="numpy")
def _locate(data: Any, slot: int) -> tuple[int, int, int]:
    """(sequence, which of its chunks, how many it has) of a slot."""
    table = field(data, AT.slots)
    if table == 0:
        chunks = field(data, AT.chunks)
        return slot // chunks, slot % chunks, chunks
    low, high = 0, field(data, AT.sequences)
    while high - low > 1:
        middle = (low + high) // 2
        if int64_at(table, middle) <= slot:
            low = middle
        else:
            high = middle
    first = int64_at(table, low)
    return low, slot - first, int64_at(table, low + 1) - first


@_njit
def _output(data: Any, name: int, batch: int, channel: int) -> int:
    """Address of an output [B, T, D] in one batch row, from ``channel`` on."""
    width = field(data, AT.width)
    return field(data, name) + (batch * field(data, AT.time) * width + channel) * data_bytes(data)


@_njit
def _wide(data: Any, name: int, row: int, channel: int) -> int:
    """Address of a row of a wide [rows, D] array, from ``channel`` on."""
    return field(data, name) + (row * field(data, AT.width) + channel) * wide_bytes(data)


@_njit
def _start(data: Any, sequence: int, channel: int, channels: int, carry: int) -> None:
    """Set the carry that enters a sequence."""
    if field(data, AT.initial) == 0:
        _zero_row(data, 0, channels, (carry,))
    else:
        _copy_row(data, 0, channels, (_wide(data, AT.initial, sequence, channel), carry))


@_njit
def _carry(data: Any, slot: int, sequence: int, last: bool, channel: int, channels: int) -> int:
    """Address of the running carry of a slot, which holds what enters the slot."""
    if field(data, AT.carries) == 0:
        carry = _wide(data, AT.final, sequence, channel)
        _start(data, sequence, channel, channels, carry)
        return carry
    if last:
        return _wide(data, AT.final, sequence, channel)
    return _wide(data, AT.carries, slot, channel)


def forward(data: Any) -> None:
    """h and the running carries."""
    blocks, block, width = field(data, AT.blocks), field(data, AT.block), field(data, AT.width)
    chunk, backwards, hints = field(data, AT.chunk), field(data, AT.backwards), field(data, AT.hints)
    out_step = width * data_bytes(data)
    item = take(data, 0)
    while item < field(data, AT.items):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
        carry = _carry(data, slot, sequence, part == parts - 1, channel, channels)
        x, x_step = input_at(data, AT.x, batch, channel)
        a, a_step = input_at(data, AT.a, batch, channel)
        out = _output(data, AT.out, batch, channel)
        for k in range(part * chunk, min((part + 1) * chunk, end - begin)):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1
            if is_set(data, AT.reset, batch, t):
                _zero_row(data, 0, channels, (carry,))
            rows = (x + t * x_step, a + t * a_step, out + t * out_step, carry, x + later * x_step, a + later * a_step)
            _forward_row(data, hints, channels, rows)
        item = take(data, 0)
    finish(data)


def backward(data: Any) -> None:
    """dx, da and the running carries."""
    blocks, block, width = field(data, AT.blocks), field(data, AT.block), field(data, AT.width)
    chunk, backwards, hints = field(data, AT.chunk), field(data, AT.backwards), field(data, AT.hints)
    out_step = width * data_bytes(data)
    item = take(data, 0)
    while item < field(data, AT.items):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
        carry = _carry(data, slot, sequence, part == parts - 1, channel, channels)
        dh, dh_step = input_at(data, AT.x, batch, channel)
        a, a_step = input_at(data, AT.a, batch, channel)
        h, h_step = input_at(data, AT.h, batch, channel)
        dx, da = _output(data, AT.out, batch, channel), _output(data, AT.da, batch, channel)
        for k in range(part * chunk, min((part + 1) * chunk, end - begin)):
            t = end - 1 - k if backwards else begin + k
            later = t - 1 if backwards else t + 1
            dh_row, a_row, dx_row, da_row = dh + t * dh_step, a + t * a_step, dx + t * out_step, da + t * out_step
            first = k == end - begin - 1  # in the order of the forward pass
            if is_set(data, AT.reset, batch, t) or (first and field(data, AT.before) == 0):
                _backward_stop_row(data, 0, channels, (dh_row, dx_row, da_row, carry))
            elif first:
                before = _wide(data, AT.before, sequence, channel)
                _backward_first_row(data, 0, channels, (dh_row, a_row, before, dx_row, da_row, carry))
            else:
                before, step = h + later * h_step, later - t
                ahead = (dh_row + step * dh_step, a_row + step * a_step, before + step * h_step)
                _backward_row(data, hints, channels, (dh_row, a_row, before, dx_row, da_row, carry, *ahead))
        item = take(data, 0)
    finish(data)


def reduce(data: Any) -> None:
    """products and carries: what each chunk but a sequence's last does to the carry that enters it."""
    blocks, block, width = field(data, AT.blocks), field(data, AT.block), field(data, AT.width)
    chunk, backwards, gradient = field(data, AT.chunk), field(data, AT.backwards), field(data, AT.gradient)
    item = take(data, 0)
    while item < field(data, AT.items):
        slot, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        sequence, part, parts = _locate(data, slot)
        if part < parts - 1:
            batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
            product, last = _wide(data, AT.products, slot, channel), _wide(data, AT.carries, slot, channel)
            _one_row(data, 0, channels, (product,))
            _zero_row(data, 0, channels, (last,))
            x, x_step = input_at(data, AT.x, batch, channel)
            a, a_step = input_at(data, AT.a, batch, channel)
            for k in range(part * chunk, (part + 1) * chunk):
                t = end - 1 - k if backwards else begin + k
                reset = is_set(data, AT.reset, batch, t)
                if reset:
                    _zero_row(data, 0, channels, (product,))
                    _zero_row(data, 0, channels, (last,))
                if not gradient:
                    _forward_reduce_row(data, 0, channels, (x + t * x_step, a + t * a_step, product, last))
                elif not reset:
                    _backward_reduce_row(data, 0, channels, (x + t * x_step, a + t * a_step, product, last))
        item = take(data, 0)


@_njit
def _any_reset(data: Any, sequence: int, part: int) -> bool:
    """Whether a whole chunk has a reset."""
    if field(data, AT.reset) == 0:
        return False
    batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
    chunk, backwards = field(data, AT.chunk), field(data, AT.backwards)
    first = end - (part + 1) * chunk if backwards else begin + part * chunk
    for t in range(first, first + chunk):
        if is_set(data, AT.reset, batch, t):
            return True
    return False


@_njit
def _any_lost(data: Any, product: int, channels: int) -> bool:
    """Whether a row of products holds NaN: an exponent of ones with a fraction."""
    found = False
    if wide_bytes(data) == 4:
        for index in range(channels):
            found |= (int32_at(product, index) & 0x7FFFFFFF) > 0x7F800000
    else:
        for index in range(channels):
            found |= (int64_at(product, index) & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
    return found


@_njit
def _walk(data: Any, sequence: int, part: int, channel: int, channels: int, product: int, carry: int) -> None:
    """The carry through a chunk without resets, step by step where its product is NaN."""
    batch, begin, end = bounds(field(data, AT.offsets), field(data, AT.time), sequence)
    chunk, backwards, gradient = field(data, AT.chunk), field(data, AT.backwards), field(data, AT.gradient)
    x, x_step = input_at(data, AT.x, batch, channel)
    a, a_step = input_at(data, AT.a, batch, channel)
    for k in range(part * chunk, (part + 1) * chunk):
        t = end - 1 - k if backwards else begin + k
        if gradient:
            _backward_walk_row(data, 0, channels, (x + t * x_step, a + t * a_step, product, carry))
        else:
            _forward_walk_row(data, 0, channels, (x + t * x_step, a + t * a_step, product, carry))


def carries(data: Any) -> None:
    """The carry that enters every chunk, from ``reduce``; one item per sequence and block."""
    blocks, block, width = field(data, AT.blocks), field(data, AT.block), field(data, AT.width)
    table, chunks = field(data, AT.slots), field(data, AT.chunks)
    item = take(data, 0)
    while item < field(data, AT.sequences) * blocks:
        sequence, channel = item // blocks, item % blocks * block
        channels = min(block, width - channel)
        carry = _wide(data, AT.final, sequence, channel)
        _start(data, sequence, channel, channels, carry)
        start = sequence * chunks if table == 0 else int64_at(table, sequence)
        end = start + chunks if table == 0 else int64_at(table, sequence + 1)
        for slot in range(start, end - 1):
            product, last = _wide(data, AT.products, slot, channel), _wide(data, AT.carries, slot, channel)
            if _any_reset(data, sequence, slot - start):
                _swap_row(data, 0, channels, (last, carry))
                continue
            _carry_row(data, 0, channels, (product, last, carry))
            if _any_lost(data, product, channels):
                _walk(data, sequence, slot - start, channel, channels, product, carry)
        item = take(data, 0)
