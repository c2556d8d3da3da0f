"""Device functions that the Triton forms of the convolution share, forward and backward.

Time is cut into pieces of SPAN steps, each of one sequence: a batch entry, or a packed sequence. Steps count from the
sequence's first one; inputs -(K-1) .. -1 are the rows of its state.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

SEQUENCES = tl.constexpr(128)
"""Offsets of packed sequences that a program looks through at a time."""


@triton.jit
def piece(place, cu_seqlens, T, pieces, sequences, SPAN: tl.constexpr):
    """(row of the state, batch, first step, steps of the sequence, begin and end of the piece) of piece ``place``.

    pieces: of one batch entry. Packed, sequence n has the pieces from cu_seqlens[n] // SPAN + n on: as many as it
    needs, or one more, without steps. A sequence without steps has one, so that every state is somebody's. In all
    T // SPAN + N, which the host knows without reading an offset.
    """
    if cu_seqlens is None:
        row = place // pieces
        batch = tl.cast(row, tl.int64)
        first = tl.cast(0, tl.int64)
        length = tl.cast(T, tl.int64)
        begin = tl.cast(place % pieces, tl.int64) * SPAN
    else:
        row = 0
        for block in range(0, sequences, SEQUENCES):
            index = block + 1 + tl.arange(0, SEQUENCES)
            own = index < sequences
            base = tl.load(cu_seqlens + index, mask=own, other=0) // SPAN + index
            row += tl.sum((own & (base <= place)).to(tl.int32))
        batch = tl.cast(0, tl.int64)
        first = tl.cast(tl.load(cu_seqlens + row), tl.int64)
        length = tl.cast(tl.load(cu_seqlens + row + 1), tl.int64) - first
        begin = (place - row - first // SPAN) * SPAN
    return row, batch, first, length, begin, tl.minimum(begin + SPAN, length)


@triton.jit
def input_row(
    x,
    state,
    i,
    columns,
    inside,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
):
    """Input i >= -(K-1) of a sequence as [block_d]: a step of x, or where i < 0 a row of the state, or zeros."""
    value = tl.load(x + i * X_STEP + columns * X_CHANNEL, mask=inside & (i >= 0), other=0.0)
    if state is not None:
        carried = tl.load(
            state + (i + TAPS - 1) * STATE_STEP + columns * STATE_CHANNEL, mask=inside & (i < 0), other=0.0
        )
        value = tl.where(i < 0, carried, value)
    return value


@triton.jit
def load_taps(
    weight,
    columns,
    inside,
    TAPS: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    WEIGHT_CHANNEL: tl.constexpr,
    ACC: tl.constexpr,
):
    """w_0 .. w_{K-1} as a tuple of [block_d] in ACC: what multiplies the input of this step, of the one before, ..."""
    taps = ()
    for k in tl.static_range(TAPS):
        row = weight + (TAPS - 1 - k) * WEIGHT_TAP + columns * WEIGHT_CHANNEL
        taps += (tl.load(row, mask=inside, other=0.0).to(ACC),)
    return taps


@triton.jit
def store_new_state(
    x,
    state,
    positions,
    new_state,
    length,
    columns,
    inside,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
    POSITION_STEP,
):
    """The last K-1 inputs of a sequence of ``length`` steps, zeros before its last document, to new_state [K-1,D]."""
    for j in tl.static_range(TAPS - 1):
        value = input_row(
            x, state, length - (TAPS - 1) + j, columns, inside, TAPS, X_STEP, X_CHANNEL, STATE_STEP, STATE_CHANNEL
        )
        if positions is not None:
            # a sequence without steps hands its state on
            last = tl.load(positions + (length - 1) * POSITION_STEP, mask=length > 0, other=TAPS)
            value = tl.where(last >= TAPS - 2 - j, value, 0.0)
        tl.store(new_state + j * D + columns, value, mask=inside)
