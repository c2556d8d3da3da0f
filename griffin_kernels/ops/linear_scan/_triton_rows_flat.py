"""Scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

Packed sequences come in two ways. Where a program owns one sequence, its span says all. Where programs own pieces of
time, ``enter`` and ``leave`` [T] int32 hold the sequence that starts, or ends, at a step, and -1 elsewhere.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.scan import load_flags, load_rows, load_state, store_row


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
    left,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
    SOME: tl.constexpr = False,
):
    """BLOCK_T steps of BLOCK_D channels, fewer in the tail. Pointers are at the tile's first step. Gives the carry.

    SOME: not all channels are inside, whatever D.
    """
    MASKED: tl.constexpr = SOME or D % BLOCK_D != 0
    MARK: tl.constexpr = -1 if REVERSE else 1
    H_STEP: tl.constexpr = -D if REVERSE else D
    ACC: tl.constexpr = carry.dtype
    xs = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    gates = load_rows(a + columns * A_CHANNEL, inside, left, A_STEP, 1.0, BLOCK_T, MASKED, TAIL)
    resets = load_flags(reset, left, RESET_STEP, 0, BLOCK_T, TAIL)
    enters = load_flags(enter, left, MARK, -1, BLOCK_T, TAIL)
    leaves = load_flags(leave, left, MARK, -1, BLOCK_T, TAIL)
    out = h + columns
    for u in tl.static_range(BLOCK_T):
        if enter is not None:
            start = load_state(h0, enters[u], h0_row, columns, inside & (enters[u] >= 0), H0_CHANNEL, ACC, BLOCK_D)
            carry = tl.where(enters[u] >= 0, start, carry)
        if reset is not None:
            carry = tl.where(resets[u] != 0, 0.0, carry)
        carry = gates[u].to(ACC) * carry + xs[u].to(ACC)
        store_row(out + u * H_STEP, carry, inside, u, left, MASKED, TAIL)
        if leave is not None:
            last = h_last + tl.cast(leaves[u], tl.int64) * D + columns
            tl.store(last, carry, mask=inside & (leaves[u] >= 0))
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
    columns,
    inside,
    steps,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOME: tl.constexpr = False,
):
    """``steps`` steps from ``carry`` [block_d]; pointers are at step 0 of the span. Gives the last carry.

    x, a, h: [D] rows; reset: bytes; h0, h_last [N,D] are used only with enter and leave. SOME: see scan_tile.
    """
    MARK: tl.constexpr = -1 if REVERSE else 1
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
            BLOCK_T,
            D=D,
            X_STEP=X_STEP,
            X_CHANNEL=X_CHANNEL,
            A_STEP=A_STEP,
            A_CHANNEL=A_CHANNEL,
            RESET_STEP=RESET_STEP,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=False,
            SOME=SOME,
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
            left,
            D=D,
            X_STEP=X_STEP,
            X_CHANNEL=X_CHANNEL,
            A_STEP=A_STEP,
            A_CHANNEL=A_CHANNEL,
            RESET_STEP=RESET_STEP,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=True,
            SOME=SOME,
        )
    return carry
