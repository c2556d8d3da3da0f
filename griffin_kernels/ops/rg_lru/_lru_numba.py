"""Compiled code of numba.fused: how rg_lru, with what surrounds it in a recurrent block or without, is walked through.

An item is some channels of one gate block, over one or more whole batch rows. A block of steps of x, widened to
float32, stays in the second-level cache while a panel of output channels at a time is multiplied, turned into gates and
scanned: what lies between x and y never leaves the first-level cache. Weights are packed into panels once per item.

Rows are steps counted through the batch: row = batch row * T + step. A sequence is a batch row, or a packed one.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from griffin_kernels.ops import _gelu, _native, _native_amx
from griffin_kernels.ops._native import copy, data_bytes, field, finish, take, vector, widen
from griffin_kernels.ops.rg_lru import _lru_numba_amx as amx
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as tiles
from griffin_kernels.ops.rg_lru._lru_numba_tiles import CHUNK, STRIDE

_njit: Any = numba.njit


class Surroundings(NamedTuple):
    """What recurrent_block has; zeros where there is none."""

    branch: int  # its y
    branch_batch: int
    branch_time: int
    taps: int  # K of the convolution that makes u, which then stands for x; 0: none
    weight: int  # float [K, D]: its taps
    bias: int  # float [D]: its bias
    state: int  # float [N, K-1, D], or 0
    positions: int  # int64 [B*T], or 0
    beside: int  # h, or 0; in the backward y's gradient: [B, T, D] contiguous


class Backward(NamedTuple):
    """What the backward has; zeros in the forward."""

    y: int  # h of recurrent_block
    y_batch: int
    y_time: int
    dy: int  # dout of recurrent_block
    dy_batch: int
    dy_time: int
    dweight_i: int  # float [groups, H, n, pitch], zeros
    dweight_r: int
    pitch: int  # n rounded up to whole panels
    rate: int  # float [D]: log a = rate r
    before: int  # float [N, D]: h0, or 0
    sums: int  # float [groups, 3, D]: r d log a, dz_i and dz_r, summed over time


class Fields(NamedTuple):
    """Given to a kernel. Addresses in bytes, strides in elements; data unless said otherwise.

    Of two, the first is of the input gate, the second of the recurrence gate.
    """

    block: Surroundings
    backward: Backward
    x: _native.Strided
    biases: tuple[int, int]  # float [D]
    weights: tuple[int, int]  # [H, n, n] contiguous
    pool: _native.Strided  # float [P, D], where states are kept, or 0
    workers: int  # threads that have begun; they advance it
    items: int  # groups of batch rows, times gate blocks, times parts
    blocks: int  # H
    parts: int  # of a gate block's channels
    part: int  # channels in a part, at most CHUNK and a multiple of the lanes; n in the backward
    n: int  # channels of a gate block
    time: int  # T
    group: int  # rows in a group: whole batch rows
    rows: int  # B * T
    step: int  # rows worked on at a time
    packing: int  # 1: weights are packed into panels before use
    stream: int  # 1: write y, or dx, past the caches; rows and parts of it must begin on a cache line
    offsets: int  # int32 [N+1] of packed sequences, or 0
    sequences: int  # N
    reset: int  # bool [B*T], or 0
    fresh: int  # 1: a sequence's first row is a reset
    scratch: int  # floats
    scratch_bytes: int  # of each worker
    unit: int  # where in the scratch the matrix unit has its room, in bytes; 0: it is not used
    rate: int  # float [D]: log2 a = rate r
    state: int  # float [N, D]: the carry that enters a sequence, replaced by what leaves; gradients in the backward
    keep: int  # int64 [B*T]: the row of the pool that the state after a row goes to, or a negative one; or 0
    out: int  # y, or dx: [B, T, D] contiguous


AT = _native.places(Fields)

ROW = 4 * STRIDE
"""Bytes from row to row of a block array."""

FILES = (__file__, *(str(module.__file__) for module in (tiles, amx, _native_amx, _gelu)))
"""Sources that the kernels are made from, besides _native.py."""


@_njit
def sequence_of(data: Any, row: int) -> tuple[int, int, int]:
    """(sequence, its first row, its end) of a row."""
    offsets = field(data, AT.offsets)
    if offsets == 0:
        time = field(data, AT.time)
        return row // time, row // time * time, (row // time + 1) * time
    low, high = 0, field(data, AT.sequences)
    while high - low > 1:
        middle = (low + high) // 2
        if _native.int32_at(offsets, middle) <= row:
            low = middle
        else:
            high = middle
    return low, _native.int32_at(offsets, low), _native.int32_at(offsets, low + 1)


@_njit
def is_reset(data: Any, row: int, begin: int) -> bool:
    """begin: the first row of its sequence."""
    reset = field(data, AT.reset)
    if reset != 0:
        return _native.int8_at(reset, row) != 0
    return row == begin and field(data, AT.fresh) != 0


@_njit
def scratch(data: Any) -> int:
    """Address of this thread's own scratch."""
    return field(data, AT.scratch) + take(data, AT.workers) * field(data, AT.scratch_bytes)


@_njit
def load(data: Any, name: int, group: int, row: int, rows: int, channel: int, n: int, target: int, whole: int) -> None:
    """Rows of an input, n channels of each, into block arrays, each of ``whole`` bytes."""
    size, first = data_bytes(data), group * field(data, AT.group)
    pitch = field(data, name + 2) * size
    start = field(data, name) + (first // field(data, AT.time) * field(data, name + 1) + channel) * size
    start += (row - first) * pitch
    for chunk in range((n + CHUNK - 1) // CHUNK):
        count = min(CHUNK, n - chunk * CHUNK)
        widen(data, rows, count, start + chunk * CHUNK * size, pitch, target + chunk * whole, ROW)


@_njit
def store(data: Any, name: int, row: int, rows: int, channel: int, channels: int, source: int, whole: int) -> None:
    """Block arrays, each of ``whole`` bytes, to rows of an output."""
    size = data_bytes(data)
    pitch = field(data, AT.blocks) * field(data, AT.n) * size
    target = field(data, name) + row * pitch + channel * size
    for chunk in range((channels + CHUNK - 1) // CHUNK):
        count = min(CHUNK, channels - chunk * CHUNK)
        start, place = source + chunk * whole, target + chunk * CHUNK * size
        if field(data, AT.stream) != 0:
            _native.narrow_past_caches(data, rows, count, start, ROW, place, pitch)
        else:
            _native.narrow(data, rows, count, start, ROW, place, pitch)


@_njit
def pack(data: Any, weight: int, channels: int, target: int) -> None:
    """[n, n] from an address on, ``channels`` columns, as panels: one vector of each row of a panel."""
    n, size, v = field(data, AT.n), data_bytes(data), vector()
    for column in range(0, channels, v):
        widen(data, n, min(v, channels - column), weight + column * size, n * size, target, 8 * v)
        target += n * 8 * v


@_njit
def multiply(data: Any, rows: int, x: int, left: int, right: int, pitch: int, z: int) -> None:
    """z += x W for one panel; left, right: its vectors in row 0 of W; pitch: bytes from row to row of W."""
    n, whole = field(data, AT.n), field(data, AT.step) * ROW
    for chunk in range((n + CHUNK - 1) // CHUNK):
        depth = min(CHUNK, n - chunk * CHUNK)
        tiles.product(rows, depth, x + chunk * whole, left, right, pitch, z, 8 * vector())
        left += CHUNK * pitch
        right += CHUNK * pitch


@_njit
def _keep(data: Any, row: int, rows: int, channel: int, count: int, y: int) -> None:
    """Copy those states of a run that are kept into the pool. y: a block array's row."""
    for step in range(rows):
        target = _native.int64_at(field(data, AT.keep), row + step)
        if target >= 0:
            place = field(data, AT.pool) + (target * field(data, AT.pool + 1) + channel) * 4
            copy(data, 1, count, y + step * ROW, 0, place, 0)


@_njit
def on_unit(data: Any) -> bool:
    """Whether products run on the matrix unit."""
    return amx.present(data) != 0 and field(data, AT.unit) != 0


@_njit
def rounded(data: Any, rows: int, source: int, target: int) -> None:
    """Block arrays of n channels as rows of data [rows, n]."""
    n = field(data, AT.n)
    for chunk in range((n + CHUNK - 1) // CHUNK):
        start, count = source + chunk * field(data, AT.step) * ROW, min(CHUNK, n - chunk * CHUNK)
        _native.narrow(data, rows, count, start, ROW, target + chunk * CHUNK * data_bytes(data), n * data_bytes(data))


@_njit
def _forward_panel(
    data: Any, row: int, rows: int, channel: int, count: int, z: int, x: int, y: int, rate: int, carry: int
) -> None:
    """Gates and recurrence of one vector of channels, ``count`` of which exist, from ``channel`` on."""
    width, end, panel = field(data, AT.blocks) * field(data, AT.n), row + rows, 8 * vector()
    at = row
    while at < end:
        sequence, begin, after = sequence_of(data, at)
        state = field(data, AT.state) + (sequence * width + channel) * 4
        if at == begin:
            copy(data, 1, count, state, 0, carry, 0)
        stop = min(after, end)
        while at < stop:
            past = at - row
            numbers = (z + past * panel, x + past * ROW, y + past * ROW, rate, carry)
            run = 1
            if is_reset(data, at, begin):
                tiles.forward_reset(run, numbers)
            else:
                while at + run < stop and not is_reset(data, at + run, begin):
                    run += 1
                tiles.forward_run(run, numbers)
            if field(data, AT.keep) != 0:
                _keep(data, at, run, channel, count, y + past * ROW)
            at += run
        if stop == after:
            copy(data, 1, count, carry, 0, state, 0)


@_njit
def convolve(data: Any, which: int, row: int, rows: int, channel: int, history: int, weights: int, target: int) -> None:
    """Rows of u, of one gate block. history: room for x and K-1 earlier rows of it; weights: rows of taps."""
    n, v, furthest = field(data, AT.n), vector(), field(data, AT.block.taps) - 1
    width, states, positions = field(data, AT.blocks) * n, field(data, AT.block.state), field(data, AT.block.positions)
    first = max(which * field(data, AT.group), row - furthest)
    inside, long = (field(data, AT.step) + furthest) * ROW, (n + CHUNK - 1) // CHUNK * CHUNK * 4
    now = history + (row - first) * ROW
    load(data, AT.x, which, first, row + rows - first, channel, n, history, inside)
    for chunk in range((n + CHUNK - 1) // CHUNK):
        start, count = chunk * CHUNK, min(CHUNK, n - chunk * CHUNK)
        out, x = target + chunk * field(data, AT.step) * ROW, now + chunk * inside
        copy(data, rows, count, field(data, AT.block.bias) + (channel + start) * 4, 0, out, ROW)
        at = row
        while at < row + rows:
            sequence, begin, after = sequence_of(data, at)
            state = states + ((sequence * furthest + furthest - begin) * width + channel + start) * 4
            while at < min(after, row + rows):
                reach, past = furthest, (at - row) * ROW
                if positions != 0:
                    reach = min(reach, _native.int64_at(positions, at))
                for k in range(max(reach, 0) + 1):
                    weight = weights + (furthest - k) * long + start * 4
                    if k <= at - begin:
                        tiles.accumulate((count + v - 1) // v, (weight, x + past - k * ROW, out + past))
                    elif states != 0:
                        place = weights + (furthest + 1) * long
                        copy(data, 1, count, state + (at - k) * width * 4, 0, place, 0)
                        tiles.accumulate((count + v - 1) // v, (weight, place, out + past))
                at += 1


def forward(data: Any) -> None:
    """y, and the states that leave the sequences."""
    n, step, size, v = field(data, AT.n), field(data, AT.step), data_bytes(data), vector()
    width, group, part = field(data, AT.blocks) * n, field(data, AT.group), field(data, AT.part)
    whole, padded = step * ROW, (part + v - 1) // v * v
    x = scratch(data)
    y = x + (n + CHUNK - 1) // CHUNK * whole
    z = y + whole
    carry = z + step * 8 * v
    rate = carry + 4 * padded
    bias_i = rate + 4 * padded
    bias_r = bias_i + 4 * padded
    panels = bias_r + 4 * padded
    # of recurrent_block only
    branch = panels + 8 * n * padded
    taps = branch + whole
    long = (n + CHUNK - 1) // CHUNK * CHUNK * 4
    history = taps + (field(data, AT.block.taps) + 1) * long  # a row more: one of the state
    unit, room = x + field(data, AT.unit), amx.room(n, step)
    if on_unit(data):
        _native_amx.configure()
    item = take(data, 0)
    while item < field(data, AT.items):
        per_group = field(data, AT.blocks) * field(data, AT.parts)
        which, block = item // per_group, item % per_group // field(data, AT.parts)
        first = item % field(data, AT.parts) * part  # within the gate block
        channels, channel = min(part, n - first), block * n + first
        copy(data, 1, channels, field(data, AT.rate) + 4 * channel, 0, rate, 0)
        copy(data, 1, channels, field(data, AT.biases) + 4 * channel, 0, bias_i, 0)
        copy(data, 1, channels, field(data, AT.biases + 1) + 4 * channel, 0, bias_r, 0)
        weight_i = field(data, AT.weights) + (block * n * n + first) * size
        weight_r = field(data, AT.weights + 1) + (block * n * n + first) * size
        if on_unit(data):
            amx.pack(weight_i, n, channels, unit + room.panels)
            amx.pack(weight_r, n, channels, unit + room.panels + _native_amx.TILE)
        elif field(data, AT.packing) != 0:
            pack(data, weight_i, channels, panels)
            pack(data, weight_r, channels, panels + 4 * v)
        for tap in range(field(data, AT.block.taps)):
            copy(data, 1, n, field(data, AT.block.weight) + (tap * width + block * n) * 4, 0, taps + tap * long, 0)
        row, end = which * group, min((which + 1) * group, field(data, AT.rows))
        while row < end:
            rows = min(step, end - row)
            if field(data, AT.block.taps) != 0:
                convolve(data, which, row, rows, block * n, history, taps, x)
                load(data, AT.block.branch, which, row, rows, channel, channels, branch, whole)
            else:
                load(data, AT.x, which, row, rows, block * n, n, x, whole)
            if on_unit(data):
                rounded(data, rows, x, unit + room.rows)
            for column in range(0, channels, v):
                own = x + (first + column) // CHUNK * whole + (first + column) % CHUNK * 4
                tiles.fill(rows, (z, bias_i + 4 * column, bias_r + 4 * column))
                left, right, pitch = weight_i + 4 * column, weight_r + 4 * column, 4 * n
                if field(data, AT.packing) != 0:
                    left, pitch = panels + column * n * 8, 8 * v
                    right = left + 4 * v
                if on_unit(data):
                    panel, deep = unit + room.panels + column * n * 4, n // _native_amx.BLOCK
                    _native_amx.add_product(
                        (rows + 31) // _native_amx.BLOCK, deep, unit + room.rows, 2 * n, panel, z, 8 * v
                    )
                else:
                    multiply(data, rows, x, left, right, pitch, z)
                count = min(v, channels - column)
                at = 4 * column
                _forward_panel(data, row, rows, channel + column, count, z, own, y + at, rate + at, carry + at)
                if field(data, AT.block.taps) != 0:
                    tiles.gelu_times(rows, (y + at, branch + at))
            store(data, AT.out, row, rows, channel, channels, y if field(data, AT.block.taps) == 0 else branch, whole)
            if field(data, AT.block.beside) != 0:
                store(data, AT.block.beside, row, rows, channel, channels, y, whole)
            row += rows
        item = take(data, 0)
    if on_unit(data):
        _native_amx.release()
    finish(data)
