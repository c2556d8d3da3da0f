"""Device functions of the one-token Triton kernels: rows of a pool, the convolution's sum, the shift of what is kept.

A kernel works on any shape of rows by channels: offsets of rows and of channels are given apart and broadcast.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(row, slots, B, P, SLOT_STEP):
    """(slot, works) of batch rows ``row``, any shape: the row of the pool as int64, and whether there is one.

    A slot that the pool of P rows does not have is one that only pads: nothing outside the pool is touched.
    """
    works = row < B
    slot = row.to(tl.int64)
    if slots is not None:
        slot = tl.load(slots + row * SLOT_STEP, mask=works, other=-1).to(tl.int64)
        works = works & (slot >= 0) & (slot < P)
    return slot, works


@triton.jit
def counts(inside, position, AGE: tl.constexpr):
    """Which inputs ``AGE`` steps back belong to the token's document; all where there are no positions."""
    if position is not None:
        inside = inside & (position >= AGE)
    return inside


@triton.jit
def convolve(
    current,
    weight,
    bias,
    kept,
    channel,
    there,
    inside,
    position,
    D: tl.constexpr,
    STATE_ROW,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
):
    """y in ACC. current: the newest input; kept: pointers to the oldest; channel, there: for weights and bias."""
    total = tl.load(bias + channel, mask=there, other=0.0).to(ACC)
    total += tl.load(weight + (TAPS - 1) * D + channel, mask=there, other=0.0).to(ACC) * current.to(ACC)
    for tap in tl.static_range(TAPS - 1):
        value = tl.load(kept + tap * STATE_ROW, mask=counts(inside, position, TAPS - 1 - tap), other=0.0).to(ACC)
        total += tl.load(weight + tap * D + channel, mask=there, other=0.0).to(ACC) * value
    return total


@triton.jit
def keep(kept, current, inside, position, STATE_ROW, TAPS: tl.constexpr):
    """Move the kept inputs a row up and put ``current`` last; those of an earlier document become zeros.

    Every thread of the program has read what it wants of them before any of it is overwritten.
    """
    rows = ()
    for tap in tl.static_range(1, TAPS - 1):
        rows += (tl.load(kept + tap * STATE_ROW, mask=counts(inside, position, TAPS - 1 - tap), other=0.0),)
    rows += (current,)
    tl.debug_barrier()
    for tap in tl.static_range(TAPS - 1):
        tl.store(kept + tap * STATE_ROW, rows[tap].to(kept.dtype.element_ty), mask=inside)
