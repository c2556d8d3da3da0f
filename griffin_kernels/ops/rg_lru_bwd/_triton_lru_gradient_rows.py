"""RG-LRU backward row by row in registers: what the fused scans share, one pass or split over programs.

Steps are visited from the last to the first. The carry is c_t = a_t g_t, what a step hands to the one before it. The
state before a step is the row of y that is visited next. Gates are recomputed from z, which their gradients replace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.elementwise import LN_2, gelu_and_slope
from griffin_kernels.ops._triton.tensors import (
    further,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    store_row,
    store_state,
)
from griffin_kernels.ops.rg_lru._triton_lru import gates_of
from griffin_kernels.ops.rg_lru._triton_lru_rows import tile_flags, tile_rows
from griffin_kernels.ops.rg_lru_bwd._triton_lru_gradient import Sums, added, gradients, multiplier, steps_later


class GradientTile(NamedTuple):
    """Some steps of ``Steps`` and ``Marks``: per field a tuple of rows, of y one step before, or of flags."""

    dy: Any
    x: Any
    y: Any
    z_i: Any
    z_r: Any
    branch: Any
    positions: Any
    enters: Any
    leaves: Any


@bundling
def load_tile(steps, marks, channels, left, remaining, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """The tile at the first of ``left`` steps, of which later ones leave the carry as it is; remaining: see below."""
    dys, xs = tile_rows(steps.dy, channels, left, 0.0, BLOCK_T), tile_rows(steps.x, channels, left, 0.0, BLOCK_T)
    before = tile_rows(later(steps.y, 1), channels, remaining - 1, 0.0, BLOCK_T)
    zs_i = tile_rows(steps.z, channels, left, 0.0, BLOCK_T)
    zs_r = tile_rows(further(steps.z, WIDTH), channels, left, float("-inf"), BLOCK_T)
    others = tile_rows(steps.branch, channels, left, 0.0, BLOCK_T)
    where, enters, leaves = tile_flags(steps.positions, marks, left, BLOCK_T)
    return GradientTile(dys, xs, before, zs_i, zs_r, others, where, enters, leaves)


@bundling
def scan_rows(steps, marks, h0, gates, carry, before_first, channels, count, remaining, WIDTH: tl.constexpr,
              FRESH: tl.constexpr, AHEAD: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """(carry [block_d], sums) after ``count`` steps from ``carry`` on, of which dx, z and dbranch are written.

    remaining: steps to the first one of the sequence, at least ``count``; the state before that one is before_first
    [block_d]. With ``marks`` h0 [N,D] holds the states before first steps. FRESH: a first step is a reset. AHEAD: a
    tile's rows are loaded while the one before it is worked on.
    """
    rate = gates.decay_log2 * LN_2
    sums = Sums(tl.zeros_like(carry), tl.zeros_like(carry), tl.zeros_like(carry))
    if steps.branch is not None:
        current = load_rows(steps.y, channels, count, 0.0, 1, True)[0]
    if AHEAD:
        ahead = load_tile(steps, marks, channels, count, remaining, WIDTH, BLOCK_T)
    for begin in range(0, count, BLOCK_T):
        left = count - begin
        z, dx, dbranch = steps.z, steps.dx, steps.dbranch
        if AHEAD:
            tile = ahead
        else:
            tile = load_tile(steps, marks, channels, left, remaining - begin, WIDTH, BLOCK_T)
        steps = steps_later(steps, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
        if AHEAD:
            ahead = load_tile(steps, marks, channels, left - BLOCK_T, remaining - begin - BLOCK_T, WIDTH, BLOCK_T)
        for u in tl.static_range(BLOCK_T):
            first = u == remaining - 1 - begin
            before = tile.y[u].to(tl.float32)
            if marks is not None:
                starts = tile.enters[u] >= 0
                carry = tl.where(starts, load_state(marks.state, tile.enters[u], channels, tl.float32, starts), carry)
                first = tile.leaves[u] >= 0
                before = tl.where(first, load_state(h0, tile.leaves[u], channels, tl.float32, first), before)
            elif not FRESH:
                before = tl.where(first, before_first, before)
            i, r, a, v, _ = gates_of(tile.z_i[u].to(tl.float32), tile.z_r[u].to(tl.float32), gates, False)
            m, slope = multiplier(v)
            # a select rather than a gate of 0, which would let NaN pass
            if steps.positions is not None:
                before = tl.where(tile.positions[u] == 0, 0.0, before)
                m = tl.where(tile.positions[u] == 0, 1.0, m)
            elif FRESH:
                m = tl.where(first, 1.0, m)
            upstream = tile.dy[u].to(tl.float32)
            if steps.branch is not None:
                gelu, steepness = gelu_and_slope(tile.branch[u].to(tl.float32))
                store_row(dbranch, u, upstream * current.to(tl.float32) * steepness, channels, left, True)
                upstream *= gelu
                current = tile.y[u]
            g = upstream + carry
            carry = a * g
            if steps.positions is not None:
                carry = tl.where(tile.positions[u] == 0, 0.0, carry)
            elif FRESH:
                carry = tl.where(first, 0.0, carry)
            direct, more = gradients(g, carry, tile.x[u].to(tl.float32), before, i, r, a, m, slope, rate)
            sums = added(sums, more)
            store_row(dx, u, direct, channels, left, True)
            store_row(z, u, more.z_i, channels, left, True)
            store_row(further(z, WIDTH), u, more.z_r, channels, left, True)
            if marks is not None:
                if marks.final is not None:
                    store_state(marks.final, tile.leaves[u], carry, channels, first)
    return carry, sums


@triton.jit
def reduce_rows(steps, marks, gates, channels, count, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """(P, S) [block_d] of ``count`` steps, a multiple of BLOCK_T, as one map c -> P c + S of what is handed to them."""
    p = tl.full(channels.columns.shape, 1.0, dtype=tl.float32)
    s = tl.zeros(channels.columns.shape, dtype=tl.float32)
    for begin in range(0, count, BLOCK_T):
        dys = load_rows(later(steps.dy, begin), channels, BLOCK_T, 0.0, BLOCK_T, False)
        zs_r = load_rows(later(further(steps.z, WIDTH), begin), channels, BLOCK_T, 0.0, BLOCK_T, False)
        if steps.branch is not None:
            others = load_rows(later(steps.branch, begin), channels, BLOCK_T, 0.0, BLOCK_T, False)
        where = load_flags(later(steps.positions, begin), BLOCK_T, 1, BLOCK_T, False)
        if marks is not None:
            enters = load_flags(later(marks.enter, begin), BLOCK_T, -1, BLOCK_T, False)
        for u in tl.static_range(BLOCK_T):
            if marks is not None:
                starts = enters[u] >= 0
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, load_state(marks.state, enters[u], channels, tl.float32, starts), s)
            a = tl.exp2(gates.decay_log2 * tl.sigmoid(zs_r[u].to(tl.float32) + gates.bias_r))
            # no gradient passes a packed sequence's first step anyway: the next one visited starts from dh_last
            upstream = dys[u].to(tl.float32)
            if steps.branch is not None:
                gelu, _ = gelu_and_slope(others[u].to(tl.float32))
                upstream *= gelu
            p = a * p
            s = a * (s + upstream)
            if steps.positions is not None:
                p = tl.where(where[u] == 0, 0.0, p)
                s = tl.where(where[u] == 0, 0.0, s)
    return p, s
