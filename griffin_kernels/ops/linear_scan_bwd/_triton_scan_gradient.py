"""Backward scan row by row in registers: what all Triton forms share, and their hosts.

Steps are visited from the last to the first, so rows run against the forward pass. The carry is
c_i = m_i a_i g_i, what a step hands to the one before it; h_{i-1} is the next row that would be visited. Matrices in
place of gates are as in linear_scan/_triton_scan.py: c_i = m_i A_i^T g_i. Of steady gates programs give sums of da over
the steps that they visit, which a last launch adds up in a fixed order where there are several.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import accumulator
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.gating import gate_of, gating_of, held_gates, load_steps, share_of
from griffin_kernels.ops._triton.scan import AGAIN, beyond_one, complex_product
from griffin_kernels.ops._triton.tensors import (
    Channels,
    State,
    at,
    dense,
    dense_state,
    later,
    load_flags,
    load_rows,
    load_state,
    marks_later,
    own_channels,
    rows,
    state,
    store_row,
    store_state,
)
from griffin_kernels.ops.linear_scan._scan_launches import Arguments, steps_of
from griffin_kernels.ops.linear_scan._triton_scan import alike, as_carry, back_through_step
from griffin_kernels.ops.linear_scan.op import rows_of

# of a tile of linear_scan_bwd_sums
SUM_ROWS = 32
SUM_D = 64


class GradientStreams(NamedTuple):
    """What a scan reads and writes: Rows, but that dx and da are contiguous, as a kernel's arguments pointers.

    da: None where it is summed. x: of a convex scan, else None.
    """

    dh: Any
    a: Any
    h: Any
    reset: Any
    dx: Any
    da: Any
    x: Any = None


class GradientEnds(NamedTuple):
    """``State`` or None: dh_last, dh0 [N,D], and sums of da that each row of those has a part of [N,D]."""

    dh_last: Any
    dh0: Any
    summed: Any


class HandedBack(NamedTuple):
    """What a scan hands from step to step: the gradient of the state, and the sum of da so far, or None."""

    state: Any
    total: Any


@bundling
def streams_at(given, batch, first, T, D: tl.constexpr, SIGN: tl.constexpr, N: tl.constexpr = 1):
    """The rows of a batch entry from time ``first`` on. N: elements of a step of a for each channel."""
    dh, a, h = at(given.dh, batch, first, SIGN), at(given.a, batch, first, SIGN), at(given.h, batch, first, SIGN)
    dx, da = dense(given.dx, batch * T + first, D, SIGN), dense(given.da, batch * T + first, D * N, SIGN)
    reset, x = at(given.reset, batch, first, SIGN), at(given.x, batch, first, SIGN)
    return GradientStreams(dh, a, h, reset, dx, da, x)


@bundling
def streams_later(streams, steps):
    """The streams from ``steps`` steps later on."""
    dh, a, h, reset, dx, da, x = streams
    dh, a, h, reset = later(dh, steps), later(a, steps), later(h, steps), later(reset, steps)
    return GradientStreams(dh, a, h, reset, later(dx, steps), later(da, steps), later(x, steps))


@bundling
def handed_back(state, tile, SUMMED: tl.constexpr):
    """What the step visited first is handed, from the gradient of the last state [held * n]."""
    total = tl.zeros(state.shape, dtype=state.dtype)
    return HandedBack(state if tile is None else as_carry(state, tile), total if SUMMED else None)


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
def input_gradient(g, a, gate, gating):
    """dx, from the gradient of a state."""
    if gating is not None:
        if gating.convex:
            g = g * share_of(a, gate, gating)
    return g


@triton.jit
def gate_gradient(slope, gate, gating):
    """da of what a holds, from the gradient of its gates or matrices."""
    if gating is not None:
        if gating.log:
            slope = slope * gate
    return slope


@bundling
def scan_tile(
    streams, marks, h0, carry, before_first, own, left, ahead, gating, held, BLOCK_T: tl.constexpr, TAIL: tl.constexpr
):
    """BLOCK_T steps, fewer in the tail; streams are at the tile's first step. Gives the carry.

    before_first: the state before the whole sequence, flat. ahead: rows of h that follow the tile's first step.
    h0: the states before the sequences of ``marks``. held: see ``held_gates``.
    """
    state, total = carry.state, carry.total
    ACC: tl.constexpr = state.dtype
    GATES: tl.constexpr = len(state.shape) == 1
    NEUTRAL: tl.constexpr = 1.0 if GATES and (gating is None or not gating.log) else 0.0
    gradients = load_rows(streams.dh, own.vectors, left, 0.0, BLOCK_T, TAIL)
    steps = load_steps(streams.a, held, own.matrices, left, NEUTRAL, BLOCK_T, TAIL)
    if streams.x is not None:
        xs = load_rows(streams.x, own.vectors, left, 0.0, BLOCK_T, TAIL)
    states = load_rows(later(streams.h, 1), own.vectors, ahead, 0.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    if marks is not None:
        enters = load_flags(marks.enter, left, -1, BLOCK_T, TAIL)
        leaves = load_flags(marks.leave, left, -1, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        if marks is not None:
            start = load_state(marks.state, enters[u], own.vectors, ACC, enters[u] >= 0)
            state = tl.where(enters[u] >= 0, tl.reshape(start, state.shape), state)
        g = tl.reshape(gradients[u].to(ACC), state.shape) + state
        before = states[u].to(ACC)
        if TAIL:
            before = tl.where(u == ahead, before_first, before)
        if marks is not None:
            start = load_state(h0, leaves[u], own.vectors, ACC, leaves[u] >= 0)
            before = tl.where(leaves[u] >= 0, start, before)
        gate = gate_of(steps[u], gating, ACC)
        after = back_through_step(gate, g)
        if streams.reset is not None:
            after = tl.where(resets[u] != 0, 0.0, after)
            before = tl.where(resets[u] != 0, 0.0, before)
        dx = input_gradient(g, steps[u], gate, gating)
        store_row(streams.dx, u, tl.reshape(dx, before.shape), own.vectors, left, TAIL)
        if streams.x is not None:
            before -= xs[u].to(ACC)
        slope = gate_gradient(tl.reshape(outer(g, before, steps[u]), steps[u].shape), gate, gating)
        if total is not None:
            total += tl.where(u < left, slope, 0.0) if TAIL else slope
        else:
            store_row(streams.da, u, slope, own.outputs, left, TAIL)
        if marks is not None:
            store_state(marks.final, leaves[u], tl.reshape(after, before.shape), own.vectors, leaves[u] >= 0)
        # steps after the end must not change what the last one left; gates are 1 there
        state = after if GATES or not TAIL else tl.where(u < left, after, state)
    return HandedBack(state, total)


@bundling
def scan_rows(streams, marks, h0, carry, before_first, own, steps, remaining, gating, BLOCK_T: tl.constexpr):
    """``steps`` steps from a carry; streams are at the step visited first. Gives the last carry.

    remaining: steps to the forward pass's first one, at least ``steps``. Its h_{i-1} is not in h, so that step belongs
    to the masked tail. The rest as in scan_tile.
    """
    held = held_gates(streams.a, own.matrices, gating, carry.state.dtype)
    full = tl.maximum(tl.minimum(steps, remaining - 1), 0) // BLOCK_T
    for _ in range(full):
        ahead = BLOCK_T
        carry = scan_tile(streams, marks, h0, carry, before_first, own, BLOCK_T, ahead, gating, held, BLOCK_T, False)
        streams = streams_later(streams, BLOCK_T)
        if marks is not None:
            marks = marks_later(marks, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        ahead = remaining - 1 - full * BLOCK_T
        carry = scan_tile(streams, marks, h0, carry, before_first, own, left, ahead, gating, held, BLOCK_T, True)
    return carry


@triton.jit
def scan_again(streams, ends, row, most, before_first, channels, steps, done, gating):
    """Channels with products of no use again, row by row, if ``most`` [block_d], their largest |a|, says there are any.

    GradientStreams are ``done`` steps past step 0. Other threads have written the rows of dx and da.
    """
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        tl.debug_barrier()
        back = streams_later(streams, -done)
        wild = beyond_one(back.a, channels, steps, most.dtype, gating)
        again = Channels(channels.columns, wild, wild)
        carry = handed_back(load_state(ends.dh_last, row, again, most.dtype), None, ends.summed is not None)
        carry = scan_rows(back, None, None, carry, before_first, alike(again), steps, steps, gating, AGAIN)
        store_state(ends.dh0, row, carry.state, again)
        store_state(ends.summed, row, carry.total, again)


@triton.jit(do_not_specialize=["parts"])
def linear_scan_bwd_sums(
    partial, da, parts, D: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """partial [Ba * parts, D] -> da [Ba, 1, D]. Grid: Ba * ceil(D / block_d)."""
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    at = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), dtype=ACC)
    for begin in range(0, parts, ROWS):
        rows = tl.cast(row, tl.int64) * parts + begin + at
        mask = (begin + at < parts)[:, None] & channels.inside[None, :]
        total += tl.load(partial + (rows * D)[:, None] + channels.columns[None, :], mask=mask, other=0.0)
    store_state(State(da, D, 1), row, tl.sum(total, axis=0), channels)


def gradient_arguments(call: Any, outputs: dict[str, Any]) -> Arguments:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``Rows.step`` is opposite to the forward pass's.
    """
    dh, dh_last, a, h, h0, reset, cu_seqlens = call[:7]
    count, back, gating = rows_of(dh.shape[0], cu_seqlens), not call.reverse, gating_of(call)
    if h0 is None:
        outputs["dh0"] = None
    else:
        host.empty(outputs, "dh0", a, count, dh.shape[2], dtype=accumulator(dh.dtype))
    dx, da = (host.empty(outputs, name, a, *like.shape, dtype=like.dtype) for name, like in (("dx", dh), ("da", a)))
    written = None if gating is not None and gating.steady.value else da
    x = call.x if gating is not None and gating.convex.value else None
    streams = rows(dh, back), steps_of(a, dh, back), rows(h, back), rows(reset, back)
    args = {
        "given": GradientStreams(*streams, dx, written, rows(x, back)),
        "dh_last": state(dh_last),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "dh0": dense_state(outputs["dh0"]),
        "summed": None,
        "T": dh.shape[1],
        "gating": gating,
    }
    return count, args, {"REVERSE": call.reverse, "ACC": host.wide(dh.dtype)}


def with_sums(arguments: Arguments, outputs: dict[str, Any], programs: int) -> tuple[Arguments, list[Launch]]:
    """Arguments of a kernel whose ``programs`` over time sum da of steady gates, and what adds the sums up after it."""
    count, args, constexprs = arguments
    if args["given"].da is not None:
        return arguments, []
    da, wide = outputs["da"], accumulator(outputs["dx"].dtype)
    rows, _, width = da.shape
    if programs == rows:
        return (count, args | {"summed": dense_state(da.view(rows, width))}, constexprs), []
    partial = torch.empty((programs, width), dtype=wide, device=da.device)
    launch = Launch(
        kernel=linear_scan_bwd_sums,
        grid=(rows * triton.cdiv(width, SUM_D),),
        args={"partial": partial, "da": da, "parts": programs // rows},
        constexprs={"D": width, "ACC": constexprs["ACC"], "ROWS": SUM_ROWS, "BLOCK_D": SUM_D},
    )
    return (count, args | {"summed": dense_state(partial)}, constexprs), [launch]
