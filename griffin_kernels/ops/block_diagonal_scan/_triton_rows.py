"""Scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

Packed sequences come in two ways. Where a program owns one sequence, its span says all. Where programs own pieces of
time, ``enter`` and ``leave`` [T] int32 hold the sequence that starts, or ends, at a step, and -1 elsewhere.
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
    x,
    a,
    reset,
    enter,
    leave,
    h,
    h0,
    h0_row,
    h_last,
    carry,
    columns,
    inside,
    elements,
    whole,
    left,
    D: tl.constexpr,
    N: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MASKED: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_T steps of BLOCK_H blocks, fewer in the tail. Pointers are at the tile's first step. Gives the carry.

    carry: [BLOCK_H, N]; columns, inside: of the vectors; elements, whole: offsets of the matrices and their mask.
    """
    MARK: tl.constexpr = -1 if REVERSE else 1
    ACC: tl.constexpr = carry.dtype
    FLAT: tl.constexpr = BLOCK_H * N
    xs = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    steps = load_rows(a + elements, whole, left, A_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    resets = load_flags(reset, left, RESET_STEP, 0, BLOCK_T, TAIL)
    enters = load_flags(enter, left, MARK, -1, BLOCK_T, TAIL)
    leaves = load_flags(leave, left, MARK, -1, BLOCK_T, TAIL)
    out = h + columns
    for u in tl.static_range(BLOCK_T):
        before = carry
        if enter is not None:
            start = load_state(h0, enters[u], h0_row, columns, inside & (enters[u] >= 0), H0_CHANNEL, ACC, FLAT)
            before = tl.where(enters[u] >= 0, as_vectors(start, N, BLOCK_H), before)
        if reset is not None:
            before = tl.where(resets[u] != 0, 0.0, before)
        after = tl.sum(as_matrices(steps[u], ACC, N, BLOCK_H) * before[:, None, :], axis=2)
        after += as_vectors(xs[u].to(ACC), N, BLOCK_H)
        flat = tl.reshape(after, (FLAT,))
        store_row(out + u * (MARK * D), flat, inside, u, left, MASKED, TAIL)
        if leave is not None:
            last = h_last + tl.cast(leaves[u], tl.int64) * D + columns
            tl.store(last, flat, mask=inside & (leaves[u] >= 0))
        # steps after the end must not change what the last one left
        carry = tl.where(u < left, after, carry) if TAIL else after
    return carry


@triton.jit
def scan_rows(
    x,
    a,
    reset,
    enter,
    leave,
    h,
    h0,
    h0_row,
    h_last,
    carry,
    block,
    steps,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """``steps`` steps of the blocks from ``block`` on; pointers are at step 0 of the span. Gives the last carry.

    carry: [BLOCK_H, N]. x, h: [D] rows; a: [H, n, n]; reset: bytes; h0, h_last [N,D] only with enter and leave.
    """
    MARK: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = H * SIZE
    MASKED: tl.constexpr = H % BLOCK_H != 0 or N != SIZE
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
    elements, whole = matrix_elements(block, H, SIZE, N, A_BLOCK, A_ROW, A_COLUMN, BLOCK_H)
    full = steps // BLOCK_T
    for _ in range(full):
        carry = scan_tile(
            x,
            a,
            reset,
            enter,
            leave,
            h,
            h0,
            h0_row,
            h_last,
            carry,
            columns,
            inside,
            elements,
            whole,
            BLOCK_T,
            D=D,
            N=N,
            X_STEP=X_STEP,
            X_CHANNEL=X_CHANNEL,
            A_STEP=A_STEP,
            RESET_STEP=RESET_STEP,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_H=BLOCK_H,
            MASKED=MASKED,
            TAIL=False,
        )
        x += BLOCK_T * X_STEP
        a += BLOCK_T * A_STEP
        h += BLOCK_T * MARK * D
        if reset is not None:
            reset += BLOCK_T * RESET_STEP
        if enter is not None:
            enter += BLOCK_T * MARK
            leave += BLOCK_T * MARK
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(
            x,
            a,
            reset,
            enter,
            leave,
            h,
            h0,
            h0_row,
            h_last,
            carry,
            columns,
            inside,
            elements,
            whole,
            left,
            D=D,
            N=N,
            X_STEP=X_STEP,
            X_CHANNEL=X_CHANNEL,
            A_STEP=A_STEP,
            RESET_STEP=RESET_STEP,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_H=BLOCK_H,
            MASKED=MASKED,
            TAIL=True,
        )
    return carry
