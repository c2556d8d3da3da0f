"""Gates and scan row by row in registers: what triton.fused_scan and triton.fused_scan_chunked share.

A tile is ``BLOCK_T`` rows of x and of both gates' products, loaded before the first is used; with AHEAD the tile after
it is in flight while one is worked on, because a row here takes some fifty instructions and not two as in a scan alone.
Rows past the end read products of minus infinity and an x of 0, which leave a state as it is.

Packed sequences come in two ways, as in linear_scan: a program owns one, or ``enter`` and ``leave`` [T] int32 hold the
sequence that starts, or ends, at a step, and -1 elsewhere. FRESH: a sequence's first step is a reset. At a reset the
state before is replaced by 0, not multiplied by it: it may be NaN.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.scan import load_rows, load_state, store_row
from griffin_kernels.ops.rg_lru._triton_jit import argument, gelu, scaled_gates


@triton.jit
def load_flags(pointer, left, STEP, OTHER: tl.constexpr, ROWS: tl.constexpr):
    """ROWS scalars, one per step, as a tuple, OTHER from ``left`` on; an empty one where ``pointer`` is None."""
    flags = ()
    if pointer is not None:
        for u in tl.static_range(ROWS):
            flags += (tl.load(pointer + u * STEP, mask=u < left, other=OTHER),)
    return flags


@triton.jit
def load_tile(x, z_i, z_r, positions, enter, leave, branch, columns, inside, left, D: tl.constexpr,
              X_STEP, X_CHANNEL: tl.constexpr, POSITION_STEP, BRANCH_STEP,
              BRANCH_CHANNEL: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Rows of x, z_i and z_r, the flags of their steps, rows of the branch: seven tuples, empty where there is nothing.

    Pointers are at the tile's first step.
    """
    xs = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, BLOCK_T, True, True)
    zs_i = load_rows(z_i + columns, inside, left, D, 0.0, BLOCK_T, True, True)
    zs_r = load_rows(z_r + columns, inside, left, D, float("-inf"), BLOCK_T, True, True)
    where = load_flags(positions, left, POSITION_STEP, 1, BLOCK_T)
    enters = load_flags(enter, left, 1, -1, BLOCK_T)
    leaves = load_flags(leave, left, 1, -1, BLOCK_T)
    others = ()
    if branch is not None:
        others = load_rows(branch + columns * BRANCH_CHANNEL, inside, left, BRANCH_STEP, 0.0, BLOCK_T, True, True)
    return xs, zs_i, zs_r, where, enters, leaves, others


@triton.jit
def step(tile, u: tl.constexpr, begin, bias_i, bias_r, decay_log2, positions, enter, FRESH: tl.constexpr,
         FAST: tl.constexpr):  # fmt: skip
    """(a, m i x) of row u; at a reset m is 1, a is what it is. ``begin``: steps before the tile, of the sequence or,
    with ``enter``, of any."""
    xs, zs_i, zs_r, where, enters, _, _ = tile
    y_i = argument(zs_i[u].to(tl.float32), bias_i, FAST)
    y_r = argument(zs_r[u].to(tl.float32), bias_r, FAST)
    i, _, a, _, m = scaled_gates(y_i, y_r, decay_log2, FAST)
    if positions is not None:
        m = tl.where(where[u] == 0, 1.0, m)
    elif FRESH:
        if enter is not None:
            m = tl.where(enters[u] >= 0, 1.0, m)
        elif u == 0:
            m = tl.where(begin == 0, 1.0, m)
    return a, m * i * xs[u].to(tl.float32)


@triton.jit
def scan_rows(
    x,
    z_i,
    z_r,
    bias_i,
    bias_r,
    decay_log2,
    positions,
    enter,
    leave,
    branch,
    y,
    out,
    h0,
    h0_row,
    h_last,
    carry,
    columns,
    inside,
    before,
    steps,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BRANCH_STEP,
    BRANCH_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    FAST: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``steps`` steps from ``carry`` [block_d]; pointers are at the first of them, ``before`` come earlier. Gives the
    last carry.

    x, z_i, z_r, branch, y, out: [D] rows; positions: int64; h0, h_last [N,D] are used only with enter and leave.
    States go to y, and times gelu(branch) to out, whichever there is.
    """
    MASKED: tl.constexpr = D % BLOCK_D != 0
    if AHEAD:
        ahead = load_tile(
            x, z_i, z_r, positions, enter, leave, branch, columns, inside, steps, D, X_STEP, X_CHANNEL, POSITION_STEP,
            BRANCH_STEP, BRANCH_CHANNEL, BLOCK_T,
        )  # fmt: skip
    for begin in range(0, steps, BLOCK_T):
        left = steps - begin
        if AHEAD:
            tile = ahead
        else:
            tile = load_tile(
                x, z_i, z_r, positions, enter, leave, branch, columns, inside, left, D, X_STEP, X_CHANNEL,
                POSITION_STEP, BRANCH_STEP, BRANCH_CHANNEL, BLOCK_T,
            )  # fmt: skip
        x += BLOCK_T * X_STEP
        z_i += BLOCK_T * D
        z_r += BLOCK_T * D
        if positions is not None:
            positions += BLOCK_T * POSITION_STEP
        if enter is not None:
            enter += BLOCK_T
            leave += BLOCK_T
        if branch is not None:
            branch += BLOCK_T * BRANCH_STEP
        if AHEAD:
            ahead = load_tile(
                x, z_i, z_r, positions, enter, leave, branch, columns, inside, left - BLOCK_T, D, X_STEP, X_CHANNEL,
                POSITION_STEP, BRANCH_STEP, BRANCH_CHANNEL, BLOCK_T,
            )  # fmt: skip
        for u in tl.static_range(BLOCK_T):
            if enter is not None:
                starts = tile[4][u]
                start = load_state(h0, starts, h0_row, columns, inside & (starts >= 0), H0_CHANNEL, tl.float32, BLOCK_D)
                carry = tl.where(starts >= 0, start, carry)
            if positions is not None:
                carry = tl.where(tile[3][u] == 0, 0.0, carry)
            a, value = step(tile, u, before + begin, bias_i, bias_r, decay_log2, positions, enter, FRESH, FAST)
            carry = a * carry + value
            if y is not None:
                store_row(y + u * D + columns, carry, inside, u, left, MASKED, True)
            if out is not None:
                gated = carry * gelu(tile[6][u].to(tl.float32), FAST)
                store_row(out + u * D + columns, gated, inside, u, left, MASKED, True)
            if leave is not None:
                ends = tile[5][u]
                tl.store(h_last + tl.cast(ends, tl.int64) * D + columns, carry, mask=inside & (ends >= 0))
        if y is not None:
            y += BLOCK_T * D
        if out is not None:
            out += BLOCK_T * D
    return carry


@triton.jit
def reduce_rows(
    x,
    z_i,
    z_r,
    bias_i,
    bias_r,
    decay_log2,
    positions,
    enter,
    h0,
    h0_row,
    columns,
    inside,
    before,
    steps,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    H0_CHANNEL: tl.constexpr,
    FRESH: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(P, S) [block_d] of ``steps`` steps, after ``before``, as one map of the state that enters them, h -> P h + S."""
    p = tl.full((BLOCK_D,), 1.0, dtype=tl.float32)
    s = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for begin in range(0, steps, BLOCK_T):
        tile = load_tile(
            x, z_i, z_r, positions, enter, None, None, columns, inside, steps - begin, D, X_STEP, X_CHANNEL,
            POSITION_STEP, 0, 0, BLOCK_T,
        )  # fmt: skip
        for u in tl.static_range(BLOCK_T):
            if enter is not None:
                starts = tile[4][u]
                start = load_state(h0, starts, h0_row, columns, inside & (starts >= 0), H0_CHANNEL, tl.float32, BLOCK_D)
                p = tl.where(starts >= 0, 0.0, p)
                s = tl.where(starts >= 0, start, s)
            if positions is not None:
                p = tl.where(tile[3][u] == 0, 0.0, p)
                s = tl.where(tile[3][u] == 0, 0.0, s)
            a, value = step(tile, u, before + begin, bias_i, bias_r, decay_log2, positions, enter, FRESH, FAST)
            p = a * p
            s = a * s + value
        x += BLOCK_T * X_STEP
        z_i += BLOCK_T * D
        z_r += BLOCK_T * D
        if positions is not None:
            positions += BLOCK_T * POSITION_STEP
        if enter is not None:
            enter += BLOCK_T
    return p, s
