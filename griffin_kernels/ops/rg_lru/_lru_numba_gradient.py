"""Compiled code of numba.fused's gradient: how rg_lru_bwd, alone or within recurrent_block_bwd, is walked through.

An item is a gate block of one or more whole batch rows. Blocks of steps are taken from the last to the first; see
_lru_numba.py for the rest.
"""

# Python's types end where numba's begin.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from griffin_kernels.ops import _native_amx
from griffin_kernels.ops._native import copy, data_bytes, field, finish, take, vector, widen
from griffin_kernels.ops.rg_lru import _lru_numba as forward
from griffin_kernels.ops.rg_lru import _lru_numba_amx as amx
from griffin_kernels.ops.rg_lru import _lru_numba_tiles as tiles
from griffin_kernels.ops.rg_lru._lru_numba import AT, ROW, load, multiply, pack, store
from griffin_kernels.ops.rg_lru._lru_numba_tiles import CHUNK

_njit: Any = numba.njit

FILES = (*forward.FILES, __file__)
"""Sources that the kernels are made from, besides _native.py."""


@_njit
def _pack_transposed(data: Any, weight: int, target: int) -> None:
    """[n, n] from an address on, as panels of its transpose, each with room for another n rows after its own."""
    n, size, panel = field(data, AT.n), data_bytes(data), 2 * vector()
    for row in range(n):
        place = target + row // panel * (2 * n * panel * 4) + row % panel * 4
        widen(data, n, 1, weight + row * n * size, size, place, 4 * panel)


@_njit
def _backward_panel(
    data: Any,
    row: int,
    rows: int,
    channel: int,
    count: int,
    z: int,
    arrays: tuple[int, int, int, int],
    constants: tuple[int, int, int, int, int],
) -> None:
    """As ``_forward_panel``, from the last row to the first. arrays: x, dy, the step before, dz_i."""
    width, panel = field(data, AT.blocks) * field(data, AT.n), 8 * vector()
    x, dy, before, dz_i = arrays
    rate, natural_rate, carry, sums, sums_step = constants
    end = row + rows
    while end > row:
        sequence, begin, after = forward.sequence_of(data, end - 1)
        own = (sequence * width + channel) * 4
        if end == after:
            copy(data, 1, count, field(data, AT.state) + own, 0, carry, 0)
        stop = max(begin, row)
        if stop == begin:
            place = before + (begin - row) * ROW
            if field(data, AT.backward.before) == 0:
                tiles.zero(1, (place,))
            else:
                copy(data, 1, count, field(data, AT.backward.before) + own, 0, place, 0)
        while end > stop:
            run, reset = 1, forward.is_reset(data, end - 1, begin)
            while not reset and end - run > stop and not forward.is_reset(data, end - run - 1, begin):
                run += 1
            end -= run
            past = (end - row) * ROW
            numbers = (z + (end - row) * panel, x + past, dy + past, before + past, dz_i + past)
            if reset:
                tiles.backward_reset(run, (*numbers, rate, natural_rate, carry, sums, sums_step))
            else:
                tiles.backward_run(run, (*numbers, rate, natural_rate, carry, sums, sums_step))
        if stop == begin:
            copy(data, 1, count, carry, 0, field(data, AT.state) + own, 0)


@_njit
def _products(data: Any, rows: int, x: int, dx: int, dz: tuple[int, int], transposed: int, own: int) -> None:
    """dx += dz W^T, dW += x^T dz. dz: arrays of dz_i and dz_r; transposed: panels of W^T; own: offset of this dW."""
    n, whole, v, pitch = field(data, AT.n), field(data, AT.step) * ROW, vector(), field(data, AT.backward.pitch)
    chunks = (n + CHUNK - 1) // CHUNK
    for column in range(0, n, 2 * v):
        at = column // CHUNK * whole + column % CHUNK * 4
        panel = transposed + column * 2 * n * 4
        for side in range(2):
            for chunk in range(chunks):
                depth = min(CHUNK, n - chunk * CHUNK)
                tiles.product(rows, depth, dz[side] + chunk * whole, panel, panel + 4 * v, 8 * v, dx + at, ROW)
                panel += depth * 8 * v
    for side in range(2):
        dweight = field(data, AT.backward.dweight_i + side) + own
        for column in range(0, n, 2 * v):
            b = dz[side] + column // CHUNK * whole + column % CHUNK * 4
            for chunk in range(chunks):
                c = dweight + (chunk * CHUNK * pitch + column) * 4
                channels = min(CHUNK, n - chunk * CHUNK)
                tiles.transposed_product(channels, rows, x + chunk * whole, b, b + 4 * v, ROW, c, 4 * pitch)


@_njit
def _unit_products(data: Any, rows: int, dx: int, dz: tuple[int, int], own: int, unit: int) -> None:
    """As ``_products`` on the matrix unit. Rows of x are there; those after the last one count as 0."""
    n, step = field(data, AT.n), field(data, AT.step)
    room, blocks = amx.room(n, step), (rows + 31) // _native_amx.BLOCK
    missing = (blocks * _native_amx.BLOCK - rows) * n // 32  # vectors of 64 bytes
    tiles.zero(missing, (unit + room.rows + rows * 2 * n,))
    amx.transpose(n, blocks, unit + room.rows, unit + room.pairs, unit + room.columns, step)
    for side in range(2):
        source = unit + room.dz[side]
        forward.rounded(data, rows, dz[side], source)
        tiles.zero(missing, (source + rows * 2 * n,))
        amx.through_weights(rows, n, source, unit + room.transposed + side * 2 * n * n, dx, step)
        target = field(data, AT.backward.dweight_i + side) + own
        amx.over_rows(n, blocks, unit + room.columns, source, unit + room.pairs, step, target)


@_njit
def _around(
    data: Any, which: int, row: int, rows: int, channel: int, arrays: tuple[int, int, int], taps: int, history: int
) -> None:
    """What recurrent_block has around the recurrence. arrays: u, made here; dout, which becomes dh; room."""
    n, whole = field(data, AT.n), field(data, AT.step) * ROW
    u, dout, room = arrays
    # y and its gradient lie where u is going to be
    load(data, AT.block.branch, which, row, rows, channel, n, u, whole)
    load(data, AT.backward.y, which, row, rows, channel, n, room, whole)
    for column in range(0, n, vector()):
        at = column // CHUNK * whole + column % CHUNK * 4
        tiles.gelu_backward(rows, (dout + at, room + at, u + at))
    store(data, AT.block.beside, row, rows, channel, n, u, whole)
    forward.convolve(data, which, row, rows, channel, history, taps, u)


def _kernel(name: str, around: bool) -> Callable[[Any], None]:
    """rg_lru_bwd's kernel; ``around`` makes it recurrent_block_bwd's, known when it is compiled."""

    def walk(data: Any) -> None:
        """dx, gradients of the weights, sums for those of a_param and biases, gradients of the first states.

        Around: du, the gradient of the convolution's output, for dx; and the gradient of y.
        """
        n, step, size, v = field(data, AT.n), field(data, AT.step), data_bytes(data), vector()
        width, group, blocks = field(data, AT.blocks) * n, field(data, AT.group), field(data, AT.blocks)
        whole, padded = (n + CHUNK - 1) // CHUNK * step * ROW, (n + v - 1) // v * v * 4
        x = forward.scratch(data)
        dy = x + whole
        before = dy + whole
        dz_i = before + whole
        z = dz_i + whole
        carry = z + step * 8 * v
        rate = carry + padded
        natural_rate = rate + padded
        bias_i = natural_rate + padded
        bias_r = bias_i + padded
        sums = bias_r + padded
        panels = sums + 3 * padded
        transposed = panels + 2 * n * padded
        # of recurrent_block only
        taps = transposed + 8 * n * field(data, AT.backward.pitch)
        long = (n + CHUNK - 1) // CHUNK * CHUNK * 4
        history = taps + (field(data, AT.block.taps) + 1) * long  # a row more: one of the state
        unit, room = x + field(data, AT.unit), amx.room(n, step)
        if forward.on_unit(data):
            _native_amx.configure()
        item = take(data, 0)
        while item < field(data, AT.items):
            which, block = item // blocks, item % blocks
            channel = block * n
            given = (AT.rate, rate), (AT.backward.rate, natural_rate), (AT.biases, bias_i), (AT.biases + 1, bias_r)
            for name, target in given:
                copy(data, 1, n, field(data, name) + 4 * channel, 0, target, 0)
            tiles.zero(3 * padded // (4 * v), (sums,))
            matrix = block * n * n * size
            weight_i, weight_r = field(data, AT.weights) + matrix, field(data, AT.weights + 1) + matrix
            if forward.on_unit(data):
                amx.pack(weight_i, n, n, unit + room.panels)
                amx.pack(weight_r, n, n, unit + room.panels + _native_amx.TILE)
                amx.pack_transposed(weight_i, n, unit + room.transposed)
                amx.pack_transposed(weight_r, n, unit + room.transposed + 2 * n * n)
            else:
                pack(data, weight_i, n, panels)
                pack(data, weight_r, n, panels + 4 * v)
                _pack_transposed(data, weight_i, transposed)
                _pack_transposed(data, weight_r, transposed + n * 8 * v)
            for tap in range(field(data, AT.block.taps) if around else 0):
                copy(data, 1, n, field(data, AT.block.weight) + (tap * width + channel) * 4, 0, taps + tap * long, 0)
            own = item * n * field(data, AT.backward.pitch) * 4
            first, end = which * group, min((which + 1) * group, field(data, AT.rows))
            while end > first:
                rows = min(step, end - first)
                row = end - rows
                load(data, AT.backward.dy, which, row, rows, channel, n, dy, step * ROW)
                if around:
                    _around(data, which, row, rows, channel, (x, dy, dz_i), taps, history)
                else:
                    load(data, AT.x, which, row, rows, channel, n, x, step * ROW)
                # of a group's first row nothing is read: it begins a sequence
                skipped = 1 if row == first else 0
                place = before + skipped * ROW
                load(data, AT.backward.y, which, row - 1 + skipped, rows - skipped, channel, n, place, step * ROW)
                if forward.on_unit(data):
                    forward.rounded(data, rows, x, unit + room.rows)
                for column in range(0, n, v):
                    at, panel = column // CHUNK * step * ROW + column % CHUNK * 4, panels + column * n * 8
                    tiles.fill(rows, (z, bias_i + 4 * column, bias_r + 4 * column))
                    if forward.on_unit(data):
                        panel, deep = unit + room.panels + column * n * 4, n // _native_amx.BLOCK
                        _native_amx.add_product(
                            (rows + 31) // _native_amx.BLOCK, deep, unit + room.rows, 2 * n, panel, z, 8 * v
                        )
                    else:
                        multiply(data, rows, x, panel, panel + 4 * v, 8 * v, z)
                    arrays, past = (x + at, dy + at, before + at, dz_i + at), 4 * column
                    constants = (rate + past, natural_rate + past, carry + past, sums + past, padded)
                    count = min(v, n - column)
                    _backward_panel(data, row, rows, channel + column, count, z, arrays, constants)
                if forward.on_unit(data):
                    _unit_products(data, rows, dy, (dz_i, before), own, unit)
                else:
                    _products(data, rows, x, dy, (dz_i, before), transposed, own)
                store(data, AT.out, row, rows, channel, n, dy, step * ROW)
                end = row
            copy(data, 3, n, sums, padded, field(data, AT.backward.sums) + (which * 3 * width + channel) * 4, width * 4)
            item = take(data, 0)
        if forward.on_unit(data):
            _native_amx.release()
        finish(data)

    # names the kernel in numba's cache
    walk.__qualname__ = walk.__name__ = name
    return walk


backward = _kernel("backward", around=False)
block_backward = _kernel("block_backward", around=True)
