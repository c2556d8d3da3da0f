"""Compiled code of numba.fused: how rg_lru, with what surrounds it in a recurrent block or without, is walked through.

An item is some channels of one gate block, over one or more whole batch rows. A block of steps of x, widened to
float32, stays in the second-level cache while a panel of output channels at a time is multiplied, turned into gates and
scanned: what lies between x and y never leaves the first-level cache. Weights are packed into panels once per item.

Rows are steps counted through the batch: row = batch row * T + step. A sequence is a batch row, or a packed one.
"""

# Python's types end where numba's begin.
# mypy: disable-error-code="no-any-return, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import numba

from griffin_kernels.ops._native import (
    copy,
    data_bytes,
    field,
    finish,
    int8_at,
    int32_at,
    int64_at,
    narrow,
    narrow_past_caches,
    take,
    vector,
    widen,
)
from griffin_kernels.ops.rg_lru import _numba_tiles
from griffin_kernels.ops.rg_lru._numba_tiles import (
    CHUNK,
    STRIDE,
    accumulate,
    fill,
    forward_reset,
    forward_run,
    gelu_times,
    product,
)

_njit: Any = numba.njit

FIELDS = (
    "counter",  # next work item; the kernels advance it
    "workers",  # threads that have begun; they advance it
    "items",  # groups of batch rows, times gate blocks, times parts
    "blocks",  # H
    "parts",  # of a gate block's channels
    "part",  # channels in a part, a multiple of the lanes, at most CHUNK
    "n",  # channels of a gate block
    "time",  # T
    "group",  # rows in a group: whole batch rows
    "rows",  # B * T
    "step",  # rows worked on at a time
    "packing",  # 1: weights are packed into panels before use
    "stream",  # 1: write y, or dx, past the caches; rows and parts of it must begin on a cache line
    "offsets",  # int32 [N+1] of packed sequences, or 0
    "sequences",  # N
    "reset",  # bool [B*T], or 0
    "fresh",  # 1: a sequence's first row is a reset
    "scratch",  # floats
    "scratch_bytes",  # of each worker
    "bias_i",  # float [D]
    "bias_r",  # float [D]
    "rate",  # float [D]: log2 a = rate r
    "state",  # float [N, D]: the carry that enters a sequence, replaced by what leaves it; gradients in the backward
    "weight_i",  # [H, n, n] contiguous
    "weight_r",
    "x",
    "x_batch",
    "x_time",
    "out",  # y, or dx: [B, T, D] contiguous
    "taps",  # K of the convolution that makes u, which then stands for x; 0: none. From here on recurrent_block only
    "taps_weight",  # float [K, D]
    "taps_bias",  # float [D]
    "taps_state",  # float [N, K-1, D], or 0
    "positions",  # int64 [B*T], or 0
    "beside",  # h, or 0; in the backward y's gradient: [B, T, D] contiguous
    "branch",  # y of recurrent_block
    "branch_batch",
    "branch_time",
    "y",  # from here on backward only; h of recurrent_block
    "y_batch",
    "y_time",
    "dy",  # dout of recurrent_block
    "dy_batch",
    "dy_time",
    "natural_rate",  # float [D]: log a = natural_rate r
    "before",  # float [N, D]: h0, or 0
    "pitch",  # n rounded up to whole panels
    "dweight_i",  # float [groups, H, n, pitch], zeros
    "dweight_r",
    "sums",  # float [groups, 3, D]: r d log a, dz_i and dz_r, summed over time
)
"""Names of the integers. Addresses in bytes, strides in elements; data unless said otherwise."""

AT = {name: index for index, name in enumerate(FIELDS)}
_COUNTER, _WORKERS, _ITEMS, _BLOCKS = (AT[k] for k in ("counter", "workers", "items", "blocks"))
_PARTS, _PART, _N, _TIME = (AT[k] for k in ("parts", "part", "n", "time"))
_GROUP, _ROWS, _STEP, _PACKING = (AT[k] for k in ("group", "rows", "step", "packing"))
_STREAM, _OFFSETS, _SEQUENCES = (AT[k] for k in ("stream", "offsets", "sequences"))
_RESET, _FRESH = AT["reset"], AT["fresh"]
_SCRATCH, _SCRATCH_BYTES = AT["scratch"], AT["scratch_bytes"]
_BIAS_I, _BIAS_R, _RATE, _STATE = (AT[k] for k in ("bias_i", "bias_r", "rate", "state"))
_WEIGHT_I, _WEIGHT_R, _X, _OUT = (AT[k] for k in ("weight_i", "weight_r", "x", "out"))
_TAPS, _TAPS_WEIGHT, _TAPS_BIAS = (AT[k] for k in ("taps", "taps_weight", "taps_bias"))
_TAPS_STATE, _POSITIONS, _BESIDE, _BRANCH = (AT[k] for k in ("taps_state", "positions", "beside", "branch"))

ROW = 4 * STRIDE
"""Bytes from row to row of a block array."""

FILES = (__file__, str(_numba_tiles.__file__))
"""Sources that the kernels are made from, besides _native.py."""


@_njit
def sequence_of(data: Any, row: int) -> tuple[int, int, int]:
    """(sequence, its first row, its end) of a row."""
    offsets = field(data, _OFFSETS)
    if offsets == 0:
        time = field(data, _TIME)
        return row // time, row // time * time, (row // time + 1) * time
    low, high = 0, field(data, _SEQUENCES)
    while high - low > 1:
        middle = (low + high) // 2
        if int32_at(offsets, middle) <= row:
            low = middle
        else:
            high = middle
    return low, int32_at(offsets, low), int32_at(offsets, low + 1)


@_njit
def is_reset(data: Any, row: int, begin: int) -> bool:
    """begin: the first row of its sequence."""
    reset = field(data, _RESET)
    if reset != 0:
        return int8_at(reset, row) != 0
    return row == begin and field(data, _FRESH) != 0


@_njit
def scratch(data: Any) -> int:
    """Address of this thread's own scratch."""
    return field(data, _SCRATCH) + take(data, _WORKERS) * field(data, _SCRATCH_BYTES)


@_njit
def load(data: Any, name: int, group: int, row: int, rows: int, channel: int, n: int, target: int, whole: int) -> None:
    """Rows of an input, n channels of each, into block arrays, each of ``whole`` bytes."""
    size, first = data_bytes(data), group * field(data, _GROUP)
    pitch = field(data, name + 2) * size
    start = field(data, name) + (first // field(data, _TIME) * field(data, name + 1) + channel) * size
    start += (row - first) * pitch
    for chunk in range((n + CHUNK - 1) // CHUNK):
        count = min(CHUNK, n - chunk * CHUNK)
        widen(data, rows, count, start + chunk * CHUNK * size, pitch, target + chunk * whole, ROW)


@_njit
def store(data: Any, name: int, row: int, rows: int, channel: int, channels: int, source: int, whole: int) -> None:
    """Block arrays, each of ``whole`` bytes, to rows of an output."""
    size = data_bytes(data)
    pitch = field(data, _BLOCKS) * field(data, _N) * size
    target = field(data, name) + row * pitch + channel * size
    for chunk in range((channels + CHUNK - 1) // CHUNK):
        count = min(CHUNK, channels - chunk * CHUNK)
        start, place = source + chunk * whole, target + chunk * CHUNK * size
        if field(data, _STREAM) != 0:
            narrow_past_caches(data, rows, count, start, ROW, place, pitch)
        else:
            narrow(data, rows, count, start, ROW, place, pitch)


@_njit
def pack(data: Any, weight: int, channels: int, target: int) -> None:
    """[n, n] from an address on, ``channels`` columns, as panels: one vector of each row of a panel."""
    n, size, v = field(data, _N), data_bytes(data), vector()
    for column in range(0, channels, v):
        widen(data, n, min(v, channels - column), weight + column * size, n * size, target, 8 * v)
        target += n * 8 * v


@_njit
def multiply(data: Any, rows: int, x: int, left: int, right: int, pitch: int, z: int) -> None:
    """z += x W for one panel; left, right: its vectors in row 0 of W; pitch: bytes from row to row of W."""
    n, whole = field(data, _N), field(data, _STEP) * ROW
    for chunk in range((n + CHUNK - 1) // CHUNK):
        depth = min(CHUNK, n - chunk * CHUNK)
        product(rows, depth, x + chunk * whole, left, right, pitch, z, 8 * vector())
        left += CHUNK * pitch
        right += CHUNK * pitch


@_njit
def _forward_panel(
    data: Any, row: int, rows: int, channel: int, count: int, z: int, x: int, y: int, rate: int, carry: int
) -> None:
    """Gates and recurrence of one vector of channels, ``count`` of which exist, from ``channel`` on."""
    width, end, panel = field(data, _BLOCKS) * field(data, _N), row + rows, 8 * vector()
    at = row
    while at < end:
        sequence, begin, after = sequence_of(data, at)
        state = field(data, _STATE) + (sequence * width + channel) * 4
        if at == begin:
            copy(data, 1, count, state, 0, carry, 0)
        stop = min(after, end)
        while at < stop:
            past = at - row
            numbers = (z + past * panel, x + past * ROW, y + past * ROW, rate, carry)
            run = 1
            if is_reset(data, at, begin):
                forward_reset(run, numbers)
            else:
                while at + run < stop and not is_reset(data, at + run, begin):
                    run += 1
                forward_run(run, numbers)
            at += run
        if stop == after:
            copy(data, 1, count, carry, 0, state, 0)


@_njit
def convolve(data: Any, which: int, row: int, rows: int, channel: int, history: int, weights: int, target: int) -> None:
    """Rows of u, of one gate block. history: room for x and K-1 earlier rows of it; weights: rows of taps."""
    n, v, furthest = field(data, _N), vector(), field(data, _TAPS) - 1
    width, states, positions = field(data, _BLOCKS) * n, field(data, _TAPS_STATE), field(data, _POSITIONS)
    first = max(which * field(data, _GROUP), row - furthest)
    inside, long = (field(data, _STEP) + furthest) * ROW, (n + CHUNK - 1) // CHUNK * CHUNK * 4
    now = history + (row - first) * ROW
    load(data, _X, which, first, row + rows - first, channel, n, history, inside)
    for chunk in range((n + CHUNK - 1) // CHUNK):
        start, count = chunk * CHUNK, min(CHUNK, n - chunk * CHUNK)
        out, x = target + chunk * field(data, _STEP) * ROW, now + chunk * inside
        copy(data, rows, count, field(data, _TAPS_BIAS) + (channel + start) * 4, 0, out, ROW)
        at = row
        while at < row + rows:
            sequence, begin, after = sequence_of(data, at)
            state = states + ((sequence * furthest + furthest - begin) * width + channel + start) * 4
            while at < min(after, row + rows):
                reach, past = furthest, (at - row) * ROW
                if positions != 0:
                    reach = min(reach, int64_at(positions, at))
                for k in range(max(reach, 0) + 1):
                    weight = weights + (furthest - k) * long + start * 4
                    if k <= at - begin:
                        accumulate((count + v - 1) // v, (weight, x + past - k * ROW, out + past))
                    elif states != 0:
                        place = weights + (furthest + 1) * long
                        copy(data, 1, count, state + (at - k) * width * 4, 0, place, 0)
                        accumulate((count + v - 1) // v, (weight, place, out + past))
                at += 1


def forward(data: Any) -> None:
    """y, and the states that leave the sequences."""
    n, step, size, v = field(data, _N), field(data, _STEP), data_bytes(data), vector()
    width, group, part = field(data, _BLOCKS) * n, field(data, _GROUP), field(data, _PART)
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
    history = taps + (field(data, _TAPS) + 1) * long  # a row more: one of the state
    item = take(data, _COUNTER)
    while item < field(data, _ITEMS):
        per_group = field(data, _BLOCKS) * field(data, _PARTS)
        which, block = item // per_group, item % per_group // field(data, _PARTS)
        first = item % field(data, _PARTS) * part  # within the gate block
        channels, channel = min(part, n - first), block * n + first
        copy(data, 1, channels, field(data, _RATE) + 4 * channel, 0, rate, 0)
        copy(data, 1, channels, field(data, _BIAS_I) + 4 * channel, 0, bias_i, 0)
        copy(data, 1, channels, field(data, _BIAS_R) + 4 * channel, 0, bias_r, 0)
        weight_i = field(data, _WEIGHT_I) + (block * n * n + first) * size
        weight_r = field(data, _WEIGHT_R) + (block * n * n + first) * size
        if field(data, _PACKING) != 0:
            pack(data, weight_i, channels, panels)
            pack(data, weight_r, channels, panels + 4 * v)
        for tap in range(field(data, _TAPS)):
            copy(data, 1, n, field(data, _TAPS_WEIGHT) + (tap * width + block * n) * 4, 0, taps + tap * long, 0)
        row, end = which * group, min((which + 1) * group, field(data, _ROWS))
        while row < end:
            rows = min(step, end - row)
            if field(data, _TAPS) != 0:
                convolve(data, which, row, rows, block * n, history, taps, x)
                load(data, _BRANCH, which, row, rows, channel, channels, branch, whole)
            else:
                load(data, _X, which, row, rows, block * n, n, x, whole)
            for column in range(0, channels, v):
                own = x + (first + column) // CHUNK * whole + (first + column) % CHUNK * 4
                fill(rows, (z, bias_i + 4 * column, bias_r + 4 * column))
                left, right, pitch = weight_i + 4 * column, weight_r + 4 * column, 4 * n
                if field(data, _PACKING) != 0:
                    left, pitch = panels + column * n * 8, 8 * v
                    right = left + 4 * v
                multiply(data, rows, x, left, right, pitch, z)
                count = min(v, channels - column)
                at = 4 * column
                _forward_panel(data, row, rows, channel + column, count, z, own, y + at, rate + at, carry + at)
                if field(data, _TAPS) != 0:
                    gelu_times(rows, (y + at, branch + at))
            store(data, _OUT, row, rows, channel, channels, y if field(data, _TAPS) == 0 else branch, whole)
            if field(data, _BESIDE) != 0:
                store(data, _BESIDE, row, rows, channel, channels, y, whole)
            row += rows
        item = take(data, _COUNTER)
    finish(data)
