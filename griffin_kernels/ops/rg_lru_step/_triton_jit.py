"""The kernels of the one-token RG-LRU, alone or between a convolution and a gelu; both states in place.

A program computes some output channels of one gate block for some batch rows. It reads all n inputs of the block, after
the convolution where there is one (TAPS > 0). Only a program that owns the whole block moves what the convolution keeps
(SHIFT): others would read it half moved.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.rg_lru._triton_jit import LOG2_E, decay, exp2, gates, reciprocal
from griffin_kernels.ops.temporal_conv1d_step._triton_jit import convolve, keep, rows_of

# y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)) is gelu's tanh form
GELU = tl.constexpr(1.5957691216057308)
# exp2(100) is as good as infinite in the denominator of a sigmoid
LARGEST_EXPONENT = tl.constexpr(100.0)


@triton.jit
def gelu(y):
    """gelu(y) in its tanh form, float32."""
    argument = y * (y * y * (0.044715 * GELU) + GELU)
    return y * reciprocal(1.0 + exp2(tl.minimum(argument * -LOG2_E, LARGEST_EXPONENT)))


@triton.jit
def enter(
    x,
    conv_weight,
    conv_bias,
    conv_state,
    row,
    slot,
    channel,
    there,
    works,
    position,
    x_row,
    state_slot,
    D: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    STATE_ROW,
    STATE_CHANNEL: tl.constexpr,
    TAPS: tl.constexpr,
):
    """What the gates see of channels by rows, float32: x or its convolution. row, channel: any shapes that broadcast.

    there: channels that exist; works: rows that do not only pad.
    """
    inside = there & works
    current = tl.load(x + (row.to(tl.int64) * x_row + channel * X_CHANNEL), mask=inside, other=0.0)
    if TAPS == 0:
        u = current.to(tl.float32)
    else:
        kept = conv_state + (slot * state_slot + channel * STATE_CHANNEL)
        u = convolve(
            current,
            conv_weight,
            conv_bias,
            kept,
            channel,
            there,
            inside,
            position,
            D=D,
            STATE_ROW=STATE_ROW,
            TAPS=TAPS,
            ACC=tl.float32,
        )
    return u


@triton.jit
def leave(
    z_i,
    z_r,
    u,
    a_param,
    bias_i,
    bias_r,
    y,
    h,
    out,
    row,
    slot,
    channel,
    there,
    exists,
    works,
    position,
    y_row,
    h_slot,
    D: tl.constexpr,
    Y_CHANNEL: tl.constexpr,
    H_CHANNEL: tl.constexpr,
):
    """From the products and what was multiplied, channels by rows in float32, to the state and the output."""
    inside = there & works
    z_i += tl.load(bias_i + channel, mask=there, other=0.0).to(tl.float32)
    z_r += tl.load(bias_r + channel, mask=there, other=0.0).to(tl.float32)
    i, _, a, _, m = gates(z_i, z_r, decay(tl.load(a_param + channel, mask=there, other=0.0)), False)
    goes_on = inside
    if position is not None:
        m = tl.where(position == 0, 1.0, m)
        goes_on = inside & (position != 0)
    state = h + (slot * h_slot + channel * H_CHANNEL)
    new = a * tl.load(state, mask=goes_on, other=0.0) + m * i * u
    tl.debug_barrier()  # a layout may have several threads read an element, and none may read it after the store
    tl.store(state, new, mask=inside)
    if y is not None:
        branch = tl.load(y + (row.to(tl.int64) * y_row + channel * Y_CHANNEL), mask=inside, other=0.0)
        new *= gelu(branch.to(tl.float32))
    new = tl.where(works, new, 0.0)
    tl.store(out + (row.to(tl.int64) * D + channel), new.to(out.dtype.element_ty), mask=there & exists)


@triton.jit
def shift(
    x,
    conv_state,
    row,
    slot,
    channel,
    inside,
    position,
    x_row,
    state_slot,
    X_CHANNEL: tl.constexpr,
    STATE_ROW,
    STATE_CHANNEL: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Move what the convolution keeps, once every thread of the program has read it."""
    current = tl.load(x + (row.to(tl.int64) * x_row + channel * X_CHANNEL), mask=inside, other=0.0)
    kept = conv_state + (slot * state_slot + channel * STATE_CHANNEL)
    keep(kept, current, inside, position, STATE_ROW, TAPS)


@triton.jit(do_not_specialize=["B", "P"])
def step_by_dot(
    x,
    y,
    conv_weight,
    conv_bias,
    conv_state,
    a_param,
    weight_i,
    bias_i,
    weight_r,
    bias_r,
    h,
    positions,
    slots,
    out,
    B,
    P,
    x_row,
    y_row,
    h_slot,
    state_slot,
    D: tl.constexpr,
    N: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    Y_CHANNEL: tl.constexpr,
    H_CHANNEL: tl.constexpr,
    STATE_ROW,
    STATE_CHANNEL: tl.constexpr,
    POSITION_STEP,
    SLOT_STEP,
    TAPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x, y, out: [B,D]; conv_state: [P,K-1,D]; h: [P,D]; weights [H,n,n]. Tiles are channels by rows: the matrix
    instructions' long side is the channels'. Grid: H * ceil(n / block_n), ceil(B / block_b)."""
    PARTS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    SHIFT: tl.constexpr = TAPS > 1 and PARTS == 1
    block = tl.program_id(0) // PARTS
    first = block * N
    column = (tl.program_id(0) % PARTS) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    slot, works = rows_of(row, slots, B, P, far(SLOT_STEP))
    position = None
    if positions is not None:
        position = tl.load(positions + row * far(POSITION_STEP), mask=row < B, other=0)
    corner = tl.cast(block, tl.int64) * (N * N)
    weight_i += corner
    weight_r += corner
    z_i = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    z_r = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    for start in tl.range(0, N, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        at = k[:, None] * N + column[None, :]
        if N % BLOCK_K == 0 and N % BLOCK_N == 0:
            w_i = tl.load(weight_i + at)
            w_r = tl.load(weight_r + at)
        else:
            filled = (k < N)[:, None] & (column < N)[None, :]
            w_i = tl.load(weight_i + at, mask=filled, other=0.0)
            w_r = tl.load(weight_r + at, mask=filled, other=0.0)
        u = enter(
            x,
            conv_weight,
            conv_bias,
            conv_state,
            row,
            slot,
            first + k[:, None],
            k[:, None] < N,
            works,
            position,
            x_row,
            state_slot,
            D=D,
            X_CHANNEL=X_CHANNEL,
            STATE_ROW=far(STATE_ROW),
            STATE_CHANNEL=STATE_CHANNEL,
            TAPS=TAPS,
        ).to(w_i.dtype)
        z_i = dot(tl.trans(w_i), u, z_i)
        z_r = dot(tl.trans(w_r), u, z_r)
    channel = first + column[:, None]
    there = column[:, None] < N
    u = enter(
        x,
        conv_weight,
        conv_bias,
        conv_state,
        row,
        slot,
        channel,
        there,
        works,
        position,
        x_row,
        state_slot,
        D=D,
        X_CHANNEL=X_CHANNEL,
        STATE_ROW=far(STATE_ROW),
        STATE_CHANNEL=STATE_CHANNEL,
        TAPS=TAPS,
    )
    if SHIFT:
        shift(
            x,
            conv_state,
            row,
            slot,
            channel,
            there & works,
            position,
            x_row,
            state_slot,
            X_CHANNEL=X_CHANNEL,
            STATE_ROW=far(STATE_ROW),
            STATE_CHANNEL=STATE_CHANNEL,
            TAPS=TAPS,
        )
    leave(
        z_i,
        z_r,
        u,
        a_param,
        bias_i,
        bias_r,
        y,
        h,
        out,
        row,
        slot,
        channel,
        there,
        row < B,
        works,
        position,
        y_row,
        h_slot,
        D=D,
        Y_CHANNEL=Y_CHANNEL,
        H_CHANNEL=H_CHANNEL,
    )


@triton.jit(do_not_specialize=["B", "P"])
def step_by_vector(
    x,
    y,
    conv_weight,
    conv_bias,
    conv_state,
    a_param,
    weight_i,
    bias_i,
    weight_r,
    bias_r,
    h,
    positions,
    slots,
    out,
    B,
    P,
    x_row,
    y_row,
    h_slot,
    state_slot,
    D: tl.constexpr,
    N: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    Y_CHANNEL: tl.constexpr,
    H_CHANNEL: tl.constexpr,
    STATE_ROW,
    STATE_CHANNEL: tl.constexpr,
    POSITION_STEP,
    SLOT_STEP,
    TAPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
):
    """As ``step_by_dot``, one batch row after the other; BLOCK_K >= n. Grid: H * ceil(n / block_n), ceil(B / rows)."""
    PARTS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    SHIFT: tl.constexpr = TAPS > 1 and PARTS == 1
    block = tl.program_id(0) // PARTS
    first = block * N
    column = (tl.program_id(0) % PARTS) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    at = tl.cast(block, tl.int64) * (N * N) + (k[:, None] * N + column[None, :])
    if N == BLOCK_K and N % BLOCK_N == 0:
        w_i = tl.load(weight_i + at)
        w_r = tl.load(weight_r + at)
    else:
        filled = (k < N)[:, None] & (column < N)[None, :]
        w_i = tl.load(weight_i + at, mask=filled, other=0.0)
        w_r = tl.load(weight_r + at, mask=filled, other=0.0)
    for r in tl.static_range(ROWS):
        row = tl.program_id(1) * ROWS + r
        slot, works = rows_of(row, slots, B, P, far(SLOT_STEP))
        position = None
        if positions is not None:
            position = tl.load(positions + row * far(POSITION_STEP), mask=row < B, other=0)
        seen = enter(
            x,
            conv_weight,
            conv_bias,
            conv_state,
            row,
            slot,
            first + k,
            k < N,
            works,
            position,
            x_row,
            state_slot,
            D=D,
            X_CHANNEL=X_CHANNEL,
            STATE_ROW=far(STATE_ROW),
            STATE_CHANNEL=STATE_CHANNEL,
            TAPS=TAPS,
        )[:, None]
        z_i = tl.sum(seen * w_i.to(tl.float32), 0)
        z_r = tl.sum(seen * w_r.to(tl.float32), 0)
        u = enter(
            x,
            conv_weight,
            conv_bias,
            conv_state,
            row,
            slot,
            first + column,
            column < N,
            works,
            position,
            x_row,
            state_slot,
            D=D,
            X_CHANNEL=X_CHANNEL,
            STATE_ROW=far(STATE_ROW),
            STATE_CHANNEL=STATE_CHANNEL,
            TAPS=TAPS,
        )
        if SHIFT:
            shift(
                x,
                conv_state,
                row,
                slot,
                first + column,
                (column < N) & works,
                position,
                x_row,
                state_slot,
                X_CHANNEL=X_CHANNEL,
                STATE_ROW=far(STATE_ROW),
                STATE_CHANNEL=STATE_CHANNEL,
                TAPS=TAPS,
            )
        leave(
            z_i,
            z_r,
            u,
            a_param,
            bias_i,
            bias_r,
            y,
            h,
            out,
            row,
            slot,
            first + column,
            column < N,
            row < B,
            works,
            position,
            y_row,
            h_slot,
            D=D,
            Y_CHANNEL=Y_CHANNEL,
            H_CHANNEL=H_CHANNEL,
        )
