"""Backward scan row by row in registers: what triton.sequential and the last phase of triton.chunked share.

As linear_scan_bwd/_triton_scan_gradient.py, with matrices. The carry is c_i = m_i A_i^T g_i, what a step hands to the
one before it; h_{i-1} is the next row that would be visited.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.tensors import (
    dense,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    store_row,
    store_state,
)
from griffin_kernels.ops.block_diagonal_scan._triton_blocks import as_matrices
from griffin_kernels.ops.linear_scan_bwd import _triton_scan_gradient as plain
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import GradientStreams, streams_later


@bundling
def streams_at(given, batch, first, T, tile, SIGN: tl.constexpr):
    """The rows of a batch entry from time ``first`` on."""
    D: tl.constexpr = tile.blocks * tile.size
    dh, a, h, reset, dx, _ = plain.streams_at(given, batch, first, T, D, SIGN)
    return GradientStreams(dh, a, h, reset, dx, dense(given.da, batch * T + first, D * tile.size, SIGN))


@triton.jit
def scan_tile(streams, marks, h0, carry, before_first, own, left, ahead, BLOCK_T: tl.constexpr, TAIL: tl.constexpr):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry [held, n].

    before_first [held * n]: the state before the whole sequence. ahead: rows of h that follow the tile's first step.
    h0: the states before the sequences of ``marks``.
    """
    ACC: tl.constexpr = carry.dtype
    gradients = load_rows(streams.dh, own.vectors, left, 0.0, BLOCK_T, TAIL)
    steps = load_rows(streams.a, own.matrices, left, 0.0, BLOCK_T, TAIL)
    states = load_rows(later(streams.h, 1), own.vectors, ahead, 0.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        entering = carry
        if marks is not None:
            start = load_state(marks.state, enters[u], own.vectors, ACC, enters[u] >= 0)
            entering = tl.where(enters[u] >= 0, tl.reshape(start, carry.shape), entering)
        g = tl.reshape(gradients[u].to(ACC), carry.shape) + entering
        before = states[u].to(ACC)
        if TAIL:
            before = tl.where(u == ahead, before_first, before)
        if marks is not None:
            start = load_state(h0, leaves[u], own.vectors, ACC, leaves[u] >= 0)
            before = tl.where(leaves[u] >= 0, start, before)
        if streams.reset is not None:
            before = tl.where(resets[u] != 0, 0.0, before)
        after = tl.sum(as_matrices(steps[u], carry) * g[:, :, None], axis=1)
        if streams.reset is not None:
            after = tl.where(resets[u] != 0, 0.0, after)
        outer = g[:, :, None] * tl.reshape(before, carry.shape)[:, None, :]
        store_row(streams.dx, u, tl.reshape(g, before.shape), own.vectors, left, TAIL)
        store_row(streams.da, u, tl.reshape(outer, steps[u].shape), own.outputs, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], tl.reshape(after, before.shape), own.vectors, leaves[u] >= 0)
        # steps after the end must not change what the last one left
        carry = tl.where(u < left, after, carry) if TAIL else after
    return carry


@triton.jit
def scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, BLOCK_T: tl.constexpr):
    """``steps`` steps from ``carry`` [held, n]; streams are at the step visited first. Gives the last carry.

    remaining: steps to the forward pass's first one, at least ``steps``. Its h_{i-1} is not in h, so that step belongs
    to the masked tail. The rest as in scan_tile.
    """
    full = tl.maximum(tl.minimum(steps, remaining - 1), 0) // BLOCK_T
    for _ in range(full):
        carry = scan_tile(streams, marks, h0, carry, before_first, own, BLOCK_T, BLOCK_T, BLOCK_T, False)
        streams = streams_later(streams, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        ahead = remaining - 1 - full * BLOCK_T
        carry = scan_tile(streams, marks, h0, carry, before_first, own, left, ahead, BLOCK_T, True)
    return carry
