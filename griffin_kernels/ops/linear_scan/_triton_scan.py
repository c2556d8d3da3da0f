"""Scan row by row in registers: what all Triton forms share, for whole sequences, for pieces, for channels done again.

Packed sequences come in two ways. Where a program owns one sequence, its span says all. Where programs own pieces of
time, ``Marks`` tell where sequences start and end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.scan import AGAIN, beyond_one
from griffin_kernels.ops._triton.tensors import (
    Channels,
    at,
    dense,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    store_row,
    store_state,
)


class Streams(NamedTuple):
    """What a scan reads and writes: Rows, but that h is contiguous, as a kernel's argument a pointer."""

    x: Any
    a: Any
    reset: Any
    h: Any


@bundling
def streams_at(given, batch, first, T, D: tl.constexpr, SIGN: tl.constexpr):
    """The rows of a batch entry from time ``first`` on."""
    x, a, reset = at(given.x, batch, first, SIGN), at(given.a, batch, first, SIGN), at(given.reset, batch, first, SIGN)
    return Streams(x, a, reset, dense(given.h, batch * T + first, D, SIGN))


@bundling
def streams_later(streams, steps):
    """The streams from ``steps`` steps later on."""
    x, a, reset, h = streams
    return Streams(later(x, steps), later(a, steps), later(reset, steps), later(h, steps))


@triton.jit
def scan_tile(streams, marks, carry, channels, left, BLOCK_T: tl.constexpr, TAIL: tl.constexpr):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry."""
    ACC: tl.constexpr = carry.dtype
    xs = load_rows(streams.x, channels, left, 0.0, BLOCK_T, TAIL)
    gates = load_rows(streams.a, channels, left, 1.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        if marks is not None:
            start = load_state(marks.state, enters[u], channels, ACC, enters[u] >= 0)
            carry = tl.where(enters[u] >= 0, start, carry)
        if streams.reset is not None:
            carry = tl.where(resets[u] != 0, 0.0, carry)
        carry = gates[u].to(ACC) * carry + xs[u].to(ACC)
        store_row(streams.h, u, carry, channels, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], carry, channels, leaves[u] >= 0)
    return carry


@triton.jit
def scan_rows(streams, marks, carry, channels, steps, BLOCK_T: tl.constexpr):
    """``steps`` steps from ``carry`` [block_d]; streams are at step 0 of the span. Gives the last carry."""
    full = steps // BLOCK_T
    for _ in range(full):
        carry = scan_tile(streams, marks, carry, channels, BLOCK_T, BLOCK_T, False)
        streams = streams_later(streams, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(streams, marks, carry, channels, left, BLOCK_T, True)
    return carry


@triton.jit
def scan_again(streams, h0, h_last, row, most, channels, steps, done):
    """Channels with products of no use again, row by row, if ``most`` [block_d], their largest |a|, says there are any.

    Streams are ``done`` steps past step 0. Other threads have written the rows of h.
    """
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        tl.debug_barrier()
        back = streams_later(streams, -done)
        wild = beyond_one(back.a, channels, steps, most.dtype)
        again = Channels(channels.columns, wild, wild)
        carry = scan_rows(back, None, load_state(h0, row, again, most.dtype), again, steps, AGAIN)
        store_state(h_last, row, carry, again)
