"""Backward scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

Steps are visited from the last to the first, so pointers and strides run against the forward pass. The carry is
c_i = m_i a_i g_i, what a step hands to the one before it; h_{i-1} is the next row that would be visited.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.scan import load_flags, load_rows, load_state, store_row


@triton.jit
def scan_tile(
    dh,
    a,
    h,
    reset,
    enter,
    leave,
    dx,
    da,
    dh_last,
    dh_last_row,
    h0,
    h0_row,
    dh0,
    carry,
    before_first,
    columns,
    inside,
    left,
    ahead,
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
    SOME: tl.constexpr = False,
):
    """BLOCK_T steps of BLOCK_D channels, fewer in the tail. Pointers are at the tile's first step. Gives the carry.

    before_first [block_d]: the state before the whole sequence. ahead: rows of h that follow the tile's first step.
    SOME: not all channels are inside, whatever D.
    """
    MASKED: tl.constexpr = SOME or D % BLOCK_D != 0
    MARK: tl.constexpr = 1 if REVERSE else -1
    OUT_STEP: tl.constexpr = MARK * D
    ACC: tl.constexpr = carry.dtype
    gradients = load_rows(dh + columns * DH_CHANNEL, inside, left, DH_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    gates = load_rows(a + columns * A_CHANNEL, inside, left, A_STEP, 1.0, BLOCK_T, MASKED, TAIL)
    states = load_rows(h + H_STEP + columns * H_CHANNEL, inside, ahead, H_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    resets = load_flags(reset, left, RESET_STEP, 0, BLOCK_T, TAIL)
    enters = load_flags(enter, left, MARK, -1, BLOCK_T, TAIL)
    leaves = load_flags(leave, left, MARK, -1, BLOCK_T, TAIL)
    dx_out = dx + columns
    da_out = da + columns
    for u in tl.static_range(BLOCK_T):
        if enter is not None:
            start = load_state(
                dh_last, enters[u], dh_last_row, columns, inside & (enters[u] >= 0), DH_LAST_CHANNEL, ACC, BLOCK_D
            )
            carry = tl.where(enters[u] >= 0, start, carry)
        g = gradients[u].to(ACC) + carry
        before = states[u].to(ACC)
        if TAIL:
            before = tl.where(u == ahead, before_first, before)
        if leave is not None:
            start = load_state(h0, leaves[u], h0_row, columns, inside & (leaves[u] >= 0), H0_CHANNEL, ACC, BLOCK_D)
            before = tl.where(leaves[u] >= 0, start, before)
        carry = gates[u].to(ACC) * g
        if reset is not None:
            carry = tl.where(resets[u] != 0, 0.0, carry)
            before = tl.where(resets[u] != 0, 0.0, before)
        store_row(dx_out + u * OUT_STEP, g, inside, u, left, MASKED, TAIL)
        store_row(da_out + u * OUT_STEP, g * before, inside, u, left, MASKED, TAIL)
        if leave is not None and dh0 is not None:
            last = dh0 + tl.cast(leaves[u], tl.int64) * D + columns
            tl.store(last, carry, mask=inside & (leaves[u] >= 0))
    return carry


@triton.jit
def scan_rows(
    dh,
    a,
    h,
    reset,
    enter,
    leave,
    dx,
    da,
    dh_last,
    dh_last_row,
    h0,
    h0_row,
    dh0,
    carry,
    before_first,
    columns,
    inside,
    steps,
    remaining,
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOME: tl.constexpr = False,
):
    """``steps`` steps from ``carry`` [block_d]; pointers are at the step visited first. Gives the last carry.

    remaining: steps to the forward pass's first one, at least ``steps``. Its h_{i-1} is not in h, so that step belongs
    to the masked tail.
    """
    MARK: tl.constexpr = 1 if REVERSE else -1
    full = tl.maximum(tl.minimum(steps, remaining - 1), 0) // BLOCK_T
    for _ in range(full):
        carry = scan_tile(
            dh,
            a,
            h,
            reset,
            enter,
            leave,
            dx,
            da,
            dh_last,
            dh_last_row,
            h0,
            h0_row,
            dh0,
            carry,
            before_first,
            columns,
            inside,
            BLOCK_T,
            BLOCK_T,
            D=D,
            DH_STEP=DH_STEP,
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=A_STEP,
            A_CHANNEL=A_CHANNEL,
            H_STEP=H_STEP,
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=RESET_STEP,
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=False,
            SOME=SOME,
        )
        dh += BLOCK_T * DH_STEP
        a += BLOCK_T * A_STEP
        h += BLOCK_T * H_STEP
        dx += BLOCK_T * MARK * D
        da += BLOCK_T * MARK * D
        if reset is not None:
            reset += BLOCK_T * RESET_STEP
        if enter is not None:
            enter += BLOCK_T * MARK
            leave += BLOCK_T * MARK
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(
            dh,
            a,
            h,
            reset,
            enter,
            leave,
            dx,
            da,
            dh_last,
            dh_last_row,
            h0,
            h0_row,
            dh0,
            carry,
            before_first,
            columns,
            inside,
            left,
            remaining - 1 - full * BLOCK_T,
            D=D,
            DH_STEP=DH_STEP,
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=A_STEP,
            A_CHANNEL=A_CHANNEL,
            H_STEP=H_STEP,
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=RESET_STEP,
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=True,
            SOME=SOME,
        )
    return carry
