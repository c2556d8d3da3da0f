"""Tree scan of (gate, gradient) pairs over tiles of time, from the last step to the first.

    g_t = dh_t + m_{t+1} a_{t+1} g_{t+1},   dx_t = g_t,   da_t = m_t g_t h_{t-1},   dh0 = m_0 a_0 g_0

The mirror of linear_scan/triton.associative. A tile of a is loaded one step late and a tile of h one step early, so
both line up with dh and no tile is shifted in registers.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). Bound by instruction issue: the tree's
multiplications, shuffles and exchanges between warps.
Source: as linear_scan/triton.associative, by the chain rule.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from griffin_kernels.launch import Launch, architecture
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.gating import gate_of, held_gates
from griffin_kernels.ops._triton.scan import combine, combine_cut, last_row, span
from griffin_kernels.ops._triton.tensors import (
    Rows,
    later,
    load_rows,
    load_state,
    own_channels,
    store_state,
    tile_offsets,
)
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import triton_associative as forward
from griffin_kernels.ops.linear_scan._scan_launches import pipelined, read_by
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import (
    GradientEnds,
    gate_gradient,
    gradient_arguments,
    input_gradient,
    scan_again,
    streams_at,
    streams_later,
    with_sums,
)
from griffin_kernels.ops.linear_scan_bwd.op import Call


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_associative(
    given,
    dh_last,
    h0,
    cu_seqlens,
    dh0,
    summed,
    T,
    gating,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """given: dh, h, x, dx [B,T,D], a, da [Ba,Ta,D], reset [B,T]; dh_last, h0, dh0, summed: [N,D].

    Grid: N * ceil(D / block_d).
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    NEUTRAL: tl.constexpr = 1.0 if gating is None or not gating.log else 0.0
    CHANGED: tl.constexpr = gating is not None and (gating.log or gating.convex)
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    streams = streams_at(given, batch, first, T, D, SIGN)
    carry = load_state(dh_last, row, channels, ACC)  # [block_d]
    before_first = load_state(h0, row, channels, ACC)  # [block_d]
    final = tl.cast(tl.maximum(steps - 1, 0), tl.int64)
    final_gate, final_reset = later(streams.a, final), later(streams.reset, final)
    times = tl.arange(0, BLOCK_T)
    dh_tile = tile_offsets(times, channels.columns, given.dh, BLOCK_T, D)
    a_tile = tile_offsets(times, channels.columns, given.a, BLOCK_T, D)
    h_tile = tile_offsets(times, channels.columns, given.h, BLOCK_T, D)
    if given.x is not None:
        x_tile = tile_offsets(times, channels.columns, given.x, BLOCK_T, D)
    out_tile = tile_offsets(times, channels.columns, Rows(given.dx, 0, SIGN * D, 1), BLOCK_T, D)
    total = None if summed is None else tl.zeros((BLOCK_D,), dtype=ACC)
    held = held_gates(streams.a, channels, gating, ACC)
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    for begin in tl.range(0, steps, BLOCK_T, num_stages=STAGES):
        left = steps - begin
        here = times < left  # [block_t]
        late = here & (times + begin > 0)
        inside = channels.inside[None, :]
        mask = here[:, None] & inside
        values = tl.load(streams.dh.at + dh_tile, mask=mask, other=0.0).to(ACC)
        if held is None:
            late_steps = tl.load(later(streams.a, -1).at + a_tile, mask=late[:, None] & inside, other=NEUTRAL)
        else:
            late_steps = tl.where(late[:, None] & inside, held[None, :], NEUTRAL)
        gates = gate_of(late_steps, gating, ACC).to(ACC)
        early = (times < left - 1)[:, None] & inside
        before = tl.load(later(streams.h, 1).at + h_tile, mask=early, other=0.0).to(ACC)
        before = tl.where((times == left - 1)[:, None], before_first[None, :], before)
        if given.reset is not None:
            offsets = times * streams.reset.step
            late_resets = tl.load(later(streams.reset, -1).at + offsets, mask=late, other=0)
            gates = tl.where(late_resets[:, None] != 0, 0.0, gates)
            reach, local = tl.associative_scan((gates, values), 0, combine_cut)
            g = tl.where(reach == 0.0, local, reach * carry[None, :] + local)
            resets = tl.load(streams.reset.at + offsets, mask=here, other=0)
            before = tl.where(resets[:, None] != 0, 0.0, before)
        else:
            reach, local = tl.associative_scan((gates, values), 0, combine)
            g = reach * carry[None, :] + local
        most = tl.maximum(most, tl.max(tl.abs(gates), axis=0))
        dx, gate = g, None
        if CHANGED:
            steps_here = held[None, :] if held is not None else tl.load(streams.a.at + a_tile, mask=mask, other=NEUTRAL)
            gate = gate_of(steps_here, gating, ACC)
            dx = input_gradient(g, steps_here, gate, gating)
        tl.store(streams.dx.at + out_tile, dx.to(given.dx.dtype.element_ty), mask=mask)
        if given.x is not None:
            before -= tl.load(streams.x.at + x_tile, mask=mask, other=0.0).to(ACC)
        slope = gate_gradient(g * before, gate, gating)
        if total is not None:
            total += tl.sum(tl.where(mask, slope, 0.0), axis=0)
        else:
            tl.store(streams.da.at + out_tile, slope.to(given.da.dtype.element_ty), mask=mask)
        carry = last_row(g, times, BLOCK_T)
        streams = streams_later(streams, BLOCK_T)
    if dh0 is not None:
        # a sequence without steps hands its gradient through
        final_step = load_rows(final_gate, channels, steps, NEUTRAL, 1, True)[0]
        handed = gate_of(final_step, gating, ACC).to(ACC) * carry
        if given.reset is not None:
            handed = tl.where(tl.load(final_reset.at, mask=steps > 0, other=0) != 0, 0.0, handed)
        store_state(dh0, row, handed, channels)
    done = tl.cast(tl.cdiv(steps, BLOCK_T), tl.int64) * BLOCK_T
    store_state(summed, row, total, channels)
    scan_again(streams, GradientEnds(dh_last, dh0, summed), row, most, before_first, channels, steps, done, gating)


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    arguments = gradient_arguments(call, outputs)
    (count, args, constexprs), sums = with_sums(arguments, outputs, arguments[0])
    inputs, constexprs = read_by(call), constexprs | {"STAGES": config.num_stages}
    launch = host.channel_launch(linear_scan_bwd_associative, count, inputs, config, args, constexprs)
    spills = "8 bytes a thread, none of them in the loop" if architecture(call.a) == "sm_100" else ""
    return [pipelined(launch, inputs, config, spills), *sums]


VARIANT = backward_of(
    forward.VARIANT, summary="tree scan of (gate, gradient) pairs over pipelined tiles", launches=launches
)
