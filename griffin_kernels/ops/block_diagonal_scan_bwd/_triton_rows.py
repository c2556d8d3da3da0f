"""Backward scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

Steps are visited from the last to the first, so pointers and strides run against the forward pass. The carry is
c_i = m_i A_i^T g_i, what a step hands to the one before it; h_{i-1} is the next row that would be visited.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.scan import load_flags, load_rows, load_state, store_row
from griffin_kernels.ops.block_diagonal_scan._triton_jit import (
    as_matrices,
    as_vectors,
    matrix_elements,
    vector_columns,
)


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
    elements,
    out_elements,
    whole,
    left,
    ahead,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MASKED: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_T steps of BLOCK_H blocks, fewer in the tail. Pointers are at the tile's first step. Gives the carry.

    carry: [BLOCK_H, N]. before_first [BLOCK_H * N]: the state before the whole sequence. columns, inside: of the
    vectors. elements, out_elements, whole: offsets of the matrices in a and in da, and their mask. ahead: rows of h
    that follow the tile's first step.
    """
    MARK: tl.constexpr = 1 if REVERSE else -1
    ACC: tl.constexpr = carry.dtype
    FLAT: tl.constexpr = BLOCK_H * N
    gradients = load_rows(dh + columns * DH_CHANNEL, inside, left, DH_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    steps = load_rows(a + elements, whole, left, A_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    states = load_rows(h + H_STEP + columns * H_CHANNEL, inside, ahead, H_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    resets = load_flags(reset, left, RESET_STEP, 0, BLOCK_T, TAIL)
    enters = load_flags(enter, left, MARK, -1, BLOCK_T, TAIL)
    leaves = load_flags(leave, left, MARK, -1, BLOCK_T, TAIL)
    dx_out = dx + columns
    da_out = da + out_elements
    for u in tl.static_range(BLOCK_T):
        entering = carry
        if enter is not None:
            start = load_state(
                dh_last, enters[u], dh_last_row, columns, inside & (enters[u] >= 0), DH_LAST_CHANNEL, ACC, FLAT
            )
            entering = tl.where(enters[u] >= 0, as_vectors(start, N, BLOCK_H), entering)
        g = as_vectors(gradients[u].to(ACC), N, BLOCK_H) + entering
        before = states[u].to(ACC)
        if TAIL:
            before = tl.where(u == ahead, before_first, before)
        if leave is not None:
            start = load_state(h0, leaves[u], h0_row, columns, inside & (leaves[u] >= 0), H0_CHANNEL, ACC, FLAT)
            before = tl.where(leaves[u] >= 0, start, before)
        if reset is not None:
            before = tl.where(resets[u] != 0, 0.0, before)
        after = tl.sum(as_matrices(steps[u], ACC, N, BLOCK_H) * g[:, :, None], axis=1)
        if reset is not None:
            after = tl.where(resets[u] != 0, 0.0, after)
        outer = g[:, :, None] * as_vectors(before, N, BLOCK_H)[:, None, :]
        store_row(dx_out + u * (MARK * D), tl.reshape(g, (FLAT,)), inside, u, left, MASKED, TAIL)
        store_row(da_out + u * (MARK * D * SIZE), tl.reshape(outer, (FLAT * N,)), whole, u, left, MASKED, TAIL)
        if leave is not None and dh0 is not None:
            last = dh0 + tl.cast(leaves[u], tl.int64) * D + columns
            tl.store(last, tl.reshape(after, (FLAT,)), mask=inside & (leaves[u] >= 0))
        # steps after the end must not change what the last one left
        carry = tl.where(u < left, after, carry) if TAIL else after
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
    block,
    steps,
    remaining,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """``steps`` steps of the blocks from ``block`` on; pointers are at step 0 of the span. Gives the last carry.

    carry: [BLOCK_H, N]. remaining: steps to the forward pass's first one, at least ``steps``. Its h_{i-1} is not in h,
    so that step belongs to the masked tail.
    """
    MARK: tl.constexpr = 1 if REVERSE else -1
    D: tl.constexpr = H * SIZE
    MASKED: tl.constexpr = H % BLOCK_H != 0 or N != SIZE
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
    elements, whole = matrix_elements(block, H, SIZE, N, A_BLOCK, A_ROW, A_COLUMN, BLOCK_H)
    out_elements, _ = matrix_elements(block, H, SIZE, N, SIZE * SIZE, SIZE, 1, BLOCK_H)
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
            elements,
            out_elements,
            whole,
            BLOCK_T,
            BLOCK_T,
            D=D,
            SIZE=SIZE,
            N=N,
            DH_STEP=DH_STEP,
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=A_STEP,
            H_STEP=H_STEP,
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=RESET_STEP,
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_H=BLOCK_H,
            MASKED=MASKED,
            TAIL=False,
        )
        dh += BLOCK_T * DH_STEP
        a += BLOCK_T * A_STEP
        h += BLOCK_T * H_STEP
        dx += BLOCK_T * MARK * D
        da += BLOCK_T * MARK * D * SIZE
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
            elements,
            out_elements,
            whole,
            left,
            remaining - 1 - full * BLOCK_T,
            D=D,
            SIZE=SIZE,
            N=N,
            DH_STEP=DH_STEP,
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=A_STEP,
            H_STEP=H_STEP,
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=RESET_STEP,
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_H=BLOCK_H,
            MASKED=MASKED,
            TAIL=True,
        )
    return carry
