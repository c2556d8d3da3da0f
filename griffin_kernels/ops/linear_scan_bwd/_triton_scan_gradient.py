"""Backward scan row by row in registers: what all Triton forms share, and their hosts.

Steps are visited from the last to the first, so rows run against the forward pass. The carry is
c_i = m_i a_i g_i, what a step hands to the one before it; h_{i-1} is the next row that would be visited. Matrices in
place of gates are as in linear_scan/_triton_scan.py: c_i = m_i A_i^T g_i.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.scan import AGAIN, beyond_one, complex_product
from griffin_kernels.ops._triton.tensors import (
    Channels,
    at,
    dense,
    dense_state,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    rows,
    state,
    store_row,
    store_state,
)
from griffin_kernels.ops.linear_scan._scan_launches import Arguments, steps_of
from griffin_kernels.ops.linear_scan._triton_scan import alike, back_through_step
from griffin_kernels.ops.linear_scan.op import rows_of


class GradientStreams(NamedTuple):
    """What a scan reads and writes: Rows, but that dx and da are contiguous, as a kernel's arguments pointers."""

    dh: Any
    a: Any
    h: Any
    reset: Any
    dx: Any
    da: Any


@bundling
def streams_at(given, batch, first, T, D: tl.constexpr, SIGN: tl.constexpr, N: tl.constexpr = 1):
    """The rows of a batch entry from time ``first`` on. N: elements of a step of a for each channel."""
    dh, a, h = at(given.dh, batch, first, SIGN), at(given.a, batch, first, SIGN), at(given.h, batch, first, SIGN)
    dx, da = dense(given.dx, batch * T + first, D, SIGN), dense(given.da, batch * T + first, D * N, SIGN)
    return GradientStreams(dh, a, h, at(given.reset, batch, first, SIGN), dx, da)


@bundling
def streams_later(streams, steps):
    """The streams from ``steps`` steps later on."""
    dh, a, h, reset, dx, da = streams
    return GradientStreams(
        later(dh, steps), later(a, steps), later(h, steps), later(reset, steps), later(dx, steps), later(da, steps)
    )


@triton.jit
def outer(g, before, a):
    """The gradient of a step's ``a``, from those of its state and the state before it [held * n]."""
    if len(g.shape) == 1:
        product = g * before
    elif a.shape[0] == before.shape[0]:
        product = complex_product(before, g, True)
    else:
        product = g[:, :, None] * tl.reshape(before, g.shape)[:, None, :]
    return product


@triton.jit
def scan_tile(streams, marks, h0, carry, before_first, own, left, ahead, BLOCK_T: tl.constexpr, TAIL: tl.constexpr):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry.

    before_first: the state before the whole sequence, flat. ahead: rows of h that follow the tile's first step.
    h0: the states before the sequences of ``marks``.
    """
    ACC: tl.constexpr = carry.dtype
    GATES: tl.constexpr = len(carry.shape) == 1
    gradients = load_rows(streams.dh, own.vectors, left, 0.0, BLOCK_T, TAIL)
    steps = load_rows(streams.a, own.matrices, left, 1.0 if GATES else 0.0, BLOCK_T, TAIL)
    states = load_rows(later(streams.h, 1), own.vectors, ahead, 0.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        if marks is not None:
            start = load_state(marks.state, enters[u], own.vectors, ACC, enters[u] >= 0)
            carry = tl.where(enters[u] >= 0, tl.reshape(start, carry.shape), carry)
        g = tl.reshape(gradients[u].to(ACC), carry.shape) + carry
        before = states[u].to(ACC)
        if TAIL:
            before = tl.where(u == ahead, before_first, before)
        if marks is not None:
            start = load_state(h0, leaves[u], own.vectors, ACC, leaves[u] >= 0)
            before = tl.where(leaves[u] >= 0, start, before)
        after = back_through_step(steps[u], g)
        if streams.reset is not None:
            after = tl.where(resets[u] != 0, 0.0, after)
            before = tl.where(resets[u] != 0, 0.0, before)
        store_row(streams.dx, u, tl.reshape(g, before.shape), own.vectors, left, TAIL)
        store_row(streams.da, u, tl.reshape(outer(g, before, steps[u]), steps[u].shape), own.outputs, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], tl.reshape(after, before.shape), own.vectors, leaves[u] >= 0)
        # steps after the end must not change what the last one left; gates are 1 there
        carry = after if GATES or not TAIL else tl.where(u < left, after, carry)
    return carry


@triton.jit
def scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, BLOCK_T: tl.constexpr):
    """``steps`` steps from a carry; streams are at the step visited first. Gives the last carry.

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


@triton.jit
def scan_again(streams, dh_last, dh0, row, most, before_first, channels, steps, done):
    """Channels with products of no use again, row by row, if ``most`` [block_d], their largest |a|, says there are any.

    GradientStreams are ``done`` steps past step 0. Other threads have written the rows of dx and da.
    """
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        tl.debug_barrier()
        back = streams_later(streams, -done)
        wild = beyond_one(back.a, channels, steps, most.dtype)
        again = Channels(channels.columns, wild, wild)
        carry = load_state(dh_last, row, again, most.dtype)
        carry = scan_rows(back, None, None, carry, before_first, alike(again), steps, steps, AGAIN)
        store_state(dh0, row, carry, again)


def gradient_arguments(call: Any, outputs: dict[str, Any]) -> Arguments:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``Rows.step`` is opposite to the forward pass's.
    """
    dh, dh_last, a, h, h0, reset, cu_seqlens = call[:7]
    count, reverse, back = rows_of(a.shape[0], cu_seqlens), call.reverse, not call.reverse
    if h0 is None:
        outputs["dh0"] = None
    else:
        host.empty(outputs, "dh0", a, count, dh.shape[2], dtype=accumulator(a.dtype))
    written = [host.empty(outputs, name, a, *like.shape, dtype=a.dtype) for name, like in (("dx", dh), ("da", a))]
    args = {
        "given": GradientStreams(rows(dh, back), steps_of(a, back), rows(h, back), rows(reset, back), *written),
        "dh_last": state(dh_last),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "dh0": dense_state(outputs["dh0"]),
        "T": a.shape[1],
    }
    return count, args, {"REVERSE": reverse, "ACC": host.wide(a.dtype)}
