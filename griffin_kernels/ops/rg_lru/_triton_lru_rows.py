"""Gates and scan row by row in registers: what triton.fused_scan and triton.fused_scan_chunked share.

A tile is ``BLOCK_T`` rows of x and of both gates' products, loaded before the first is used; with AHEAD the tile after
it is in flight while one is worked on, because a row here takes some fifty instructions and not two as in a scan alone.
Rows past the end read products of minus infinity and an x of 0, which leave a state as it is.

Packed sequences come in two ways, as in linear_scan: a program owns one, or ``Marks`` tell where sequences start and
end. FRESH: a sequence's first step is a reset. At a reset the state before is replaced by 0, not multiplied by it: it
may be NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import gelu
from griffin_kernels.ops._triton.tensors import (
    load_flags,
    load_rows,
    load_state,
    marks_later,
    store_row,
    store_state,
)
from griffin_kernels.ops.rg_lru._triton_lru import gates_of, steps_later


class TileOfSteps(NamedTuple):
    """Some steps of ``Steps`` and ``Marks``: per field a tuple of rows, or of the steps' flags."""

    x: Any
    z_i: Any
    z_r: Any
    branch: Any
    positions: Any
    enters: Any
    leaves: Any


@bundling
def tile_rows(rows, channels, left, OTHER: tl.constexpr, BLOCK_T: tl.constexpr):
    """Rows of a tile, OTHER from ``left`` on; an empty tuple where there are none."""
    return () if rows is None else load_rows(rows, channels, left, OTHER, BLOCK_T, True)


@bundling
def tile_flags(positions, marks, left, BLOCK_T: tl.constexpr):
    """(positions, marks that are entered, marks that are left) of a tile, likewise."""
    where = () if positions is None else load_flags(positions, left, 1, BLOCK_T, True)
    enters = () if marks is None else load_flags(marks.enter, left, -1, BLOCK_T, True)
    leaves = () if marks is None else load_flags(marks.leave, left, -1, BLOCK_T, True)
    return where, enters, leaves


@bundling
def load_tile(steps, marks, channels, left, BLOCK_T: tl.constexpr):
    """The tile at the first of ``left`` steps."""
    xs = tile_rows(steps.x, channels, left, 0.0, BLOCK_T)
    zs_i = tile_rows(steps.z_i, channels, left, 0.0, BLOCK_T)
    zs_r = tile_rows(steps.z_r, channels, left, float("-inf"), BLOCK_T)
    others = tile_rows(steps.branch, channels, left, 0.0, BLOCK_T)
    where, enters, leaves = tile_flags(steps.positions, marks, left, BLOCK_T)
    return TileOfSteps(xs, zs_i, zs_r, others, where, enters, leaves)


@triton.jit
def step(tile, u: tl.constexpr, begin, steps, marks, gates, FRESH: tl.constexpr, FAST: tl.constexpr):
    """(a, m i x) of row u; at a reset m is 1, a is what it is. ``begin``: steps before the tile, of the sequence or,
    with ``marks``, of any."""
    i, _, a, _, m = gates_of(tile.z_i[u].to(tl.float32), tile.z_r[u].to(tl.float32), gates, FAST)
    if steps.positions is not None:
        m = tl.where(tile.positions[u] == 0, 1.0, m)
    elif FRESH:
        if marks is not None:
            m = tl.where(tile.enters[u] >= 0, 1.0, m)
        elif u == 0:
            m = tl.where(begin == 0, 1.0, m)
    return a, m * i * tile.x[u].to(tl.float32)


@triton.jit
def scan_rows(steps, marks, gates, carry, channels, before, count, FRESH: tl.constexpr, FAST: tl.constexpr,
              AHEAD: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """The carry [block_d] after ``count`` steps from ``carry`` on, which y and out get; ``before`` come earlier."""
    if AHEAD:
        ahead = load_tile(steps, marks, channels, count, BLOCK_T)
    for begin in range(0, count, BLOCK_T):
        left = count - begin
        y, out = steps.y, steps.out
        if AHEAD:
            tile = ahead
        else:
            tile = load_tile(steps, marks, channels, left, BLOCK_T)
        steps = steps_later(steps, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
        if AHEAD:
            ahead = load_tile(steps, marks, channels, left - BLOCK_T, BLOCK_T)
        for u in tl.static_range(BLOCK_T):
            if marks is not None:
                start = load_state(marks.state, tile.enters[u], channels, tl.float32, tile.enters[u] >= 0)
                carry = tl.where(tile.enters[u] >= 0, start, carry)
            if steps.positions is not None:
                carry = tl.where(tile.positions[u] == 0, 0.0, carry)
            a, value = step(tile, u, before + begin, steps, marks, gates, FRESH, FAST)
            carry = a * carry + value
            if y is not None:
                store_row(y, u, carry, channels, left, True)
            if out is not None:
                gated = carry * gelu(tile.branch[u].to(tl.float32), FAST)
                store_row(out, u, gated, channels, left, True)
            if marks is not None:
                store_state(marks.final, tile.leaves[u], carry, channels, tile.leaves[u] >= 0)
    return carry


@triton.jit
def reduce_rows(
    steps, marks, gates, channels, before, count, FRESH: tl.constexpr, FAST: tl.constexpr, BLOCK_T: tl.constexpr
):
    """(P, S) [block_d] of ``count`` steps, after ``before``, as one map of the state that enters them, h -> P h + S."""
    p = tl.full(channels.columns.shape, 1.0, dtype=tl.float32)
    s = tl.zeros(channels.columns.shape, dtype=tl.float32)
    for begin in range(0, count, BLOCK_T):
        tile = load_tile(steps, marks, channels, count - begin, BLOCK_T)
        for u in tl.static_range(BLOCK_T):
            if marks is not None:
                start = load_state(marks.state, tile.enters[u], channels, tl.float32, tile.enters[u] >= 0)
                p = tl.where(tile.enters[u] >= 0, 0.0, p)
                s = tl.where(tile.enters[u] >= 0, start, s)
            if steps.positions is not None:
                p = tl.where(tile.positions[u] == 0, 0.0, p)
                s = tl.where(tile.positions[u] == 0, 0.0, s)
            a, value = step(tile, u, before + begin, steps, marks, gates, FRESH, FAST)
            p = a * p
            s = a * s + value
        steps = steps_later(steps, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    return p, s
