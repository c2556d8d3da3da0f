"""RG-LRU backward row by row in registers: what the fused scans share, one pass or split over programs.

Steps are visited from the last to the first. The carry is c_t = a_t g_t, what a step hands to the one before it. The
state before a step is the row of y that is visited next. Gates are recomputed from z, which their gradients replace.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops.linear_scan._triton_jit import load_flags, load_rows, load_state, store_row
from griffin_kernels.ops.rg_lru._triton_jit import LN_2, at_reset, decay
from griffin_kernels.ops.rg_lru._triton_jit import gates as gate_values
from griffin_kernels.ops.rg_lru_bwd._triton_jit import gradients, multiplier


@triton.jit
def gate_columns(columns, WIDTH: tl.constexpr):
    """Where channels [block_d] stand in a row of z [H, 2, WIDTH]: their input gate; WIDTH further the recurrence's."""
    return columns + columns // WIDTH * WIDTH


@triton.jit
def load_channels(
    a_param,
    bias_i,
    bias_r,
    columns,
    inside,
    WIDTH: tl.constexpr,
    A_PARAM_CHANNEL: tl.constexpr,
    BIAS_I_BLOCK: tl.constexpr,
    BIAS_I_CHANNEL: tl.constexpr,
    BIAS_R_BLOCK: tl.constexpr,
    BIAS_R_CHANNEL: tl.constexpr,
):
    """(log2 a / r, b_i, b_r) of channels [block_d], float32. a_param: [D]; biases: [H, WIDTH]."""
    block = columns // WIDTH
    within = columns % WIDTH
    at_i = bias_i + block * BIAS_I_BLOCK + within * BIAS_I_CHANNEL
    at_r = bias_r + block * BIAS_R_BLOCK + within * BIAS_R_CHANNEL
    return (
        decay(tl.load(a_param + columns * A_PARAM_CHANNEL, mask=inside, other=0.0)),
        tl.load(at_i, mask=inside, other=0.0).to(tl.float32),
        tl.load(at_r, mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit
def store_sums(partial, row, sum_i, sum_r, sum_a, columns, inside, D: tl.constexpr):
    """Row ``row`` of partial [rows, 3, D], for rg_lru_bwd_sums."""
    out = partial + tl.cast(row, tl.int64) * (3 * D) + columns
    tl.store(out, sum_i, mask=inside)
    tl.store(out + D, sum_r, mask=inside)
    tl.store(out + 2 * D, sum_a, mask=inside)


@triton.jit
def scan_rows(
    dy,
    x,
    y,
    z,
    positions,
    enter,
    leave,
    dx,
    dh_last,
    dh_last_row,
    h0,
    h0_row,
    dh0,
    carry,
    decay_log2,
    bias_i,
    bias_r,
    before_first,
    columns,
    inside,
    steps,
    remaining,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DY_STEP: tl.constexpr,
    DY_CHANNEL: tl.constexpr,
    X_STEP: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    Y_STEP: tl.constexpr,
    Y_CHANNEL: tl.constexpr,
    POSITION_STEP: tl.constexpr,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``steps`` steps from ``carry`` [block_d]; pointers are at the step visited first.

    dy, x, y: rows of D with strides of their own; z: rows [H, 2, WIDTH], products in, gradients out; dx: rows of D.
    positions: int64; dh_last, h0, dh0 [N,D] are used only with enter and leave. remaining: steps to the first one of
    the sequence, at least ``steps``; the state before that one is before_first [block_d]. FRESH: it is a reset, as is
    every one in ``leave``. Gives the last carry and the sums over the steps of dz_i, dz_r and r dlog_a, each [block_d].
    """
    rate = decay_log2 * LN_2
    sum_i = tl.zeros_like(carry)
    sum_r = tl.zeros_like(carry)
    sum_a = tl.zeros_like(carry)
    here = inside
    if D % BLOCK_D == 0:
        here = tl.full((BLOCK_D,), True, dtype=tl.int1)
    gates = z + gate_columns(columns, WIDTH)
    for done in range(0, steps, BLOCK_T):
        left = steps - done
        ahead = remaining - 1 - done
        dys = load_rows(dy + columns * DY_CHANNEL, here, left, DY_STEP, 0.0, BLOCK_T, True, True)
        xs = load_rows(x + columns * X_CHANNEL, here, left, X_STEP, 0.0, BLOCK_T, True, True)
        states = load_rows(y + Y_STEP + columns * Y_CHANNEL, here, ahead, Y_STEP, 0.0, BLOCK_T, True, True)
        zs_i = load_rows(gates, here, left, -2 * D, 0.0, BLOCK_T, True, True)
        zs_r = load_rows(gates + WIDTH, here, left, -2 * D, 0.0, BLOCK_T, True, True)
        at = load_flags(positions, left, POSITION_STEP, 1, BLOCK_T, True)
        enters = load_flags(enter, left, -1, -1, BLOCK_T, True)
        leaves = load_flags(leave, left, -1, -1, BLOCK_T, True)
        for u in tl.static_range(BLOCK_T):
            first = u == ahead
            before = tl.where(first, before_first, states[u].to(tl.float32))
            if enter is not None:
                starts = enters[u] >= 0
                start = load_state(
                    dh_last, enters[u], dh_last_row, columns, inside & starts, DH_LAST_CHANNEL, tl.float32, BLOCK_D
                )
                carry = tl.where(starts, start, carry)
                first = leaves[u] >= 0
                start = load_state(h0, leaves[u], h0_row, columns, inside & first, H0_CHANNEL, tl.float32, BLOCK_D)
                before = tl.where(first, start, before)
            z_i = zs_i[u].to(tl.float32) + bias_i
            z_r = zs_r[u].to(tl.float32) + bias_r
            i, r, a, v, _ = gate_values(z_i, z_r, decay_log2, False)
            m, slope = multiplier(v)
            if positions is not None:
                a, m = at_reset(a, m, at[u] == 0)
            elif FRESH:
                a, m = at_reset(a, m, first)
            g = dys[u].to(tl.float32) + carry
            direct, dz_i, dz_r, r_dlog_a = gradients(g, xs[u].to(tl.float32), before, i, r, a, m, slope, rate)
            # past the last step every factor but g is 0, so that the sums stay as they are
            sum_i += dz_i
            sum_r += dz_r
            sum_a += r_dlog_a
            carry = tl.where(u < left, a * g, carry)
            store_row(dx + columns - u * D, direct, here, u, left, True, True)
            store_row(gates - u * 2 * D, dz_i, here, u, left, True, True)
            store_row(gates + WIDTH - u * 2 * D, dz_r, here, u, left, True, True)
            if enter is not None and dh0 is not None:
                last = dh0 + tl.cast(leaves[u], tl.int64) * D + columns
                tl.store(last, carry, mask=inside & first)
        dy += BLOCK_T * DY_STEP
        x += BLOCK_T * X_STEP
        y += BLOCK_T * Y_STEP
        gates -= BLOCK_T * 2 * D
        dx -= BLOCK_T * D
        if positions is not None:
            positions += BLOCK_T * POSITION_STEP
        if enter is not None:
            enter -= BLOCK_T
            leave -= BLOCK_T
    return carry, sum_i, sum_r, sum_a
