"""Scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

As linear_scan/_triton_scan.py, with a matrix of every block in place of a gate of every channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.tensors import load_flags, load_rows, load_state, marks_later, store_row, store_state
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_matrices
from griffin_kernels.ops.linear_scan._triton_scan import streams_later


@triton.jit
def scan_tile(streams, marks, carry, own, left, BLOCK_T: tl.constexpr, TAIL: tl.constexpr):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry [held, n]."""
    ACC: tl.constexpr = carry.dtype
    xs = load_rows(streams.x, own.vectors, left, 0.0, BLOCK_T, TAIL)
    steps = load_rows(streams.a, own.matrices, left, 0.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        before = carry
        if marks is not None:
            start = load_state(marks.state, enters[u], own.vectors, ACC, enters[u] >= 0)
            before = tl.where(enters[u] >= 0, tl.reshape(start, carry.shape), before)
        if streams.reset is not None:
            before = tl.where(resets[u] != 0, 0.0, before)
        after = tl.sum(as_matrices(steps[u], carry) * before[:, None, :], axis=2)
        after += tl.reshape(xs[u].to(ACC), carry.shape)
        flat = tl.reshape(after, xs[u].shape)
        store_row(streams.h, u, flat, own.vectors, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], flat, own.vectors, leaves[u] >= 0)
        # steps after the end must not change what the last one left
        carry = tl.where(u < left, after, carry) if TAIL else after
    return carry


@triton.jit
def scan_rows(streams, marks, carry, own, steps, BLOCK_T: tl.constexpr):
    """``steps`` steps from ``carry`` [held, n]; streams are at step 0 of the span. Gives the last carry."""
    full = steps // BLOCK_T
    for _ in range(full):
        carry = scan_tile(streams, marks, carry, own, BLOCK_T, BLOCK_T, False)
        streams = streams_later(streams, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry = scan_tile(streams, marks, carry, own, left, BLOCK_T, True)
    return carry
