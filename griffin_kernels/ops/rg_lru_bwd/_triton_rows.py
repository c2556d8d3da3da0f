"""RG-LRU backward row by row in registers: what the fused scans share, one pass or split over programs.

Steps are visited from the last to the first. The carry is c_t = a_t g_t, what a step hands to the one before it. The
state before a step is the row of y that is visited next. Gates are recomputed from z, which their gradients replace.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment, unreachable"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.elementwise import LN_2
from griffin_kernels.ops._triton.scan import load_rows, load_state, store_row
from griffin_kernels.ops.rg_lru._triton_jit import decay
from griffin_kernels.ops.rg_lru._triton_jit import gates as gate_values
from griffin_kernels.ops.rg_lru_bwd._triton_jit import gelu_and_slope, gradients, load_flags, multiplier


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
def load_tile(dy, x, y, gates, branch, positions, enter, leave, columns, inside, left, remaining, D: tl.constexpr,
              WIDTH: tl.constexpr, DY_STEP, DY_CHANNEL: tl.constexpr, X_STEP,
              X_CHANNEL: tl.constexpr, Y_STEP, Y_CHANNEL: tl.constexpr, BRANCH_STEP,
              BRANCH_CHANNEL: tl.constexpr, POSITION_STEP, BLOCK_T: tl.constexpr):  # fmt: skip
    """Rows of dy, x, y one step before, z_i, z_r, branch, and the flags of their steps: nine tuples.

    Pointers are at the step visited first. From ``left`` on, rows are such that they leave the carry as it is.
    """
    dys = load_rows(dy + columns * DY_CHANNEL, inside, left, DY_STEP, 0.0, BLOCK_T, True, True)
    xs = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, BLOCK_T, True, True)
    ys = load_rows(y + Y_STEP + columns * Y_CHANNEL, inside, remaining - 1, Y_STEP, 0.0, BLOCK_T, True, True)
    zs_i = load_rows(gates, inside, left, -2 * D, 0.0, BLOCK_T, True, True)
    zs_r = load_rows(gates + WIDTH, inside, left, -2 * D, float("-inf"), BLOCK_T, True, True)
    others = ()
    if branch is not None:
        others = load_rows(branch + columns * BRANCH_CHANNEL, inside, left, BRANCH_STEP, 0.0, BLOCK_T, True, True)
    where = load_flags(positions, left, POSITION_STEP, 1, BLOCK_T)
    enters = load_flags(enter, left, -1, -1, BLOCK_T)
    leaves = load_flags(leave, left, -1, -1, BLOCK_T)
    return dys, xs, ys, zs_i, zs_r, others, where, enters, leaves


@triton.jit
def scan_rows(
    dy,
    x,
    y,
    z,
    branch,
    positions,
    enter,
    leave,
    dx,
    dbranch,
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
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    Y_STEP,
    Y_CHANNEL: tl.constexpr,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    POSITION_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``steps`` steps from ``carry`` [block_d]; pointers are at the step visited first.

    dy, x, y: rows of D with strides of their own; z: rows [H, 2, WIDTH], products in, gradients out; dx: rows of D.
    branch: rows of D whose gelu the states were multiplied by, or None: with it dy is the product's gradient, and
    dbranch gets branch's. positions: int64; dh_last, h0, dh0 [N,D] are used only with enter and leave. remaining: steps
    to the first one of the sequence, at least ``steps``; the state before that one is before_first [block_d]. FRESH: it
    is a reset, as is every one in ``leave``. AHEAD: a tile's rows are loaded while the one before it is worked on.
    Gives the last carry and the sums over the steps of dz_i, dz_r and r dlog_a, each [block_d].
    """
    rate = decay_log2 * LN_2
    sum_i = tl.zeros_like(carry)
    sum_r = tl.zeros_like(carry)
    sum_a = tl.zeros_like(carry)
    here = inside
    if D % BLOCK_D == 0:
        here = tl.full((BLOCK_D,), True, dtype=tl.int1)
    gates = z + gate_columns(columns, WIDTH)
    if branch is not None:
        current = tl.load(y + columns * Y_CHANNEL, mask=here & (steps > 0), other=0.0)
    if AHEAD:
        ahead = load_tile(
            dy, x, y, gates, branch, positions, enter, leave, columns, here, steps, remaining, D, WIDTH, DY_STEP,
            DY_CHANNEL, X_STEP, X_CHANNEL, Y_STEP, Y_CHANNEL, BRANCH_STEP, BRANCH_CHANNEL, POSITION_STEP, BLOCK_T,
        )  # fmt: skip
    for done in range(0, steps, BLOCK_T):
        left = steps - done
        if AHEAD:
            tile = ahead
        else:
            tile = load_tile(
                dy, x, y, gates, branch, positions, enter, leave, columns, here, left, remaining - done, D, WIDTH,
                DY_STEP, DY_CHANNEL, X_STEP, X_CHANNEL, Y_STEP, Y_CHANNEL, BRANCH_STEP, BRANCH_CHANNEL, POSITION_STEP,
                BLOCK_T,
            )  # fmt: skip
        dy += BLOCK_T * DY_STEP
        x += BLOCK_T * X_STEP
        y += BLOCK_T * Y_STEP
        if branch is not None:
            branch += BLOCK_T * BRANCH_STEP
        out = gates
        gates -= BLOCK_T * 2 * D
        if positions is not None:
            positions += BLOCK_T * POSITION_STEP
        if enter is not None:
            enter -= BLOCK_T
            leave -= BLOCK_T
        if AHEAD:
            ahead = load_tile(
                dy, x, y, gates, branch, positions, enter, leave, columns, here, left - BLOCK_T,
                remaining - done - BLOCK_T, D, WIDTH, DY_STEP, DY_CHANNEL, X_STEP, X_CHANNEL, Y_STEP, Y_CHANNEL,
                BRANCH_STEP, BRANCH_CHANNEL, POSITION_STEP, BLOCK_T,
            )  # fmt: skip
        dys, xs, ys, zs_i, zs_r, others, where, enters, leaves = tile
        for u in tl.static_range(BLOCK_T):
            first = u == remaining - 1 - done
            before = ys[u].to(tl.float32)
            if enter is None and not FRESH:
                before = tl.where(first, before_first, before)
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
            # a select rather than a gate of 0, which would let NaN pass
            if positions is not None:
                before = tl.where(where[u] == 0, 0.0, before)
                m = tl.where(where[u] == 0, 1.0, m)
            elif FRESH:
                m = tl.where(first, 1.0, m)
            upstream = dys[u].to(tl.float32)
            if branch is not None:
                gelu, steepness = gelu_and_slope(others[u].to(tl.float32))
                dother = upstream * current.to(tl.float32) * steepness
                store_row(dbranch + columns - u * D, dother, here, u, left, True, True)
                upstream *= gelu
                current = ys[u]
            g = upstream + carry
            carry = a * g
            if positions is not None:
                carry = tl.where(where[u] == 0, 0.0, carry)
            elif FRESH:
                carry = tl.where(first, 0.0, carry)
            direct, dz_i, dz_r, r_dlog_a = gradients(g, carry, xs[u].to(tl.float32), before, i, r, a, m, slope, rate)
            sum_i += dz_i
            sum_r += dz_r
            sum_a += r_dlog_a
            store_row(dx + columns - u * D, direct, here, u, left, True, True)
            store_row(out - u * 2 * D, dz_i, here, u, left, True, True)
            store_row(out + WIDTH - u * 2 * D, dz_r, here, u, left, True, True)
            if enter is not None and dh0 is not None:
                last = dh0 + tl.cast(leaves[u], tl.int64) * D + columns
                tl.store(last, carry, mask=inside & first)
        dx -= BLOCK_T * D
        if branch is not None:
            dbranch -= BLOCK_T * D
    return carry, sum_i, sum_r, sum_a


@triton.jit
def reduce_rows(
    dy,
    z,
    branch,
    positions,
    enter,
    dh_last,
    dh_last_row,
    decay_log2,
    bias_r,
    columns,
    inside,
    steps,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    POSITION_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(P, S) [block_d] of ``steps`` steps, a multiple of BLOCK_T, as one map c -> P c + S of what is handed to them.

    Pointers are at the step visited first. dh_last [N,D] is used only with enter.
    """
    MASKED: tl.constexpr = D % BLOCK_D != 0
    p = tl.full((BLOCK_D,), 1.0, dtype=tl.float32)
    s = tl.zeros((BLOCK_D,), dtype=tl.float32)
    gates = z + WIDTH + gate_columns(columns, WIDTH)
    for _ in range(0, steps, BLOCK_T):
        dys = load_rows(dy + columns * DY_CHANNEL, inside, BLOCK_T, DY_STEP, 0.0, BLOCK_T, MASKED, False)
        zs_r = load_rows(gates, inside, BLOCK_T, -2 * D, 0.0, BLOCK_T, MASKED, False)
        others = ()
        if branch is not None:
            others = load_rows(
                branch + columns * BRANCH_CHANNEL, inside, BLOCK_T, BRANCH_STEP, 0.0, BLOCK_T, MASKED, False
            )
        where = load_flags(positions, BLOCK_T, POSITION_STEP, 1, BLOCK_T)
        enters = load_flags(enter, BLOCK_T, -1, -1, BLOCK_T)
        for u in tl.static_range(BLOCK_T):
            if enter is not None:
                starts = enters[u] >= 0
                start = load_state(
                    dh_last, enters[u], dh_last_row, columns, inside & starts, DH_LAST_CHANNEL, tl.float32, BLOCK_D
                )
                p = tl.where(starts, 0.0, p)
                s = tl.where(starts, start, s)
            z_r = zs_r[u].to(tl.float32) + bias_r
            a = tl.exp2(decay_log2 * tl.sigmoid(z_r))
            # no gradient passes a packed sequence's first step anyway: the next one visited starts from dh_last
            upstream = dys[u].to(tl.float32)
            if branch is not None:
                gelu, _ = gelu_and_slope(others[u].to(tl.float32))
                upstream *= gelu
            p = a * p
            s = a * (s + upstream)
            if positions is not None:
                p = tl.where(where[u] == 0, 0.0, p)
                s = tl.where(where[u] == 0, 0.0, s)
        dy += BLOCK_T * DY_STEP
        if branch is not None:
            branch += BLOCK_T * BRANCH_STEP
        gates -= BLOCK_T * 2 * D
        if positions is not None:
            positions += BLOCK_T * POSITION_STEP
        if enter is not None:
            enter -= BLOCK_T
    return p, s
