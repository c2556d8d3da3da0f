"""The backward scan as a product with its transfer matrix, cut into blocks along the diagonal.

    g = L dh + reach c_in,   L[t, s] = product of m a over steps s .. t-1 as visited (1 on the diagonal)
    dx_t = g_t,   da_t = m_t g_t h_{t-1},   c_out = m a g of the block's last visited step,   dh0 = the last c_out

The mirror of linear_scan/triton.blocked_diagonal: steps are visited from the last to the first, diagonal blocks of
``block`` x ``block`` are applied densely, row by row in registers, and what lies below them acts through c, which one
block hands to the next. Rows are loaded ahead; only the last tile, which holds the first step, is masked.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). About ``block`` + 3 operations per element:
bound by memory bandwidth up to a block of 8, by instruction issue beyond.
Source: as linear_scan/triton.blocked_diagonal, by the chain rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.gating import gate_of, held_gates, load_steps
from griffin_kernels.ops._triton.scan import grow, span
from griffin_kernels.ops._triton.tensors import (
    later,
    load_flags,
    load_rows,
    load_state,
    own_channels,
    store_row,
    store_state,
)
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.linear_scan import triton_blocked_diagonal as forward
from griffin_kernels.ops.linear_scan._scan_launches import read_by
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import (
    GradientEnds,
    HandedBack,
    gate_gradient,
    gradient_arguments,
    handed_back,
    input_gradient,
    scan_again,
    streams_at,
    streams_later,
    with_sums,
)
from griffin_kernels.ops.linear_scan_bwd.op import Call


@dataclass(frozen=True)
class Config(forward.Config):
    """Fewer rows ahead than in the forward pass, of more streams."""

    block_t: int = 16


@bundling
def scan_blocks(
    streams,
    carried,
    most,
    before_first,
    channels,
    left,
    gating,
    held,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_T steps, fewer in the tail. GradientStreams are at the tile's first step.

    The tail ends with the forward pass's first step, before which the state is before_first [block_d]. Gives the carry
    and the largest |a| so far, ``most``. A block with a reset goes row by row, as in the forward pass.
    """
    ACC: tl.constexpr = most.dtype
    NEUTRAL: tl.constexpr = 1.0 if gating is None or not gating.log else 0.0
    carry, total = carried.state, carried.total
    gradients = load_rows(streams.dh, channels, left, 0.0, BLOCK_T, TAIL)
    steps = load_steps(streams.a, held, channels, left, NEUTRAL, BLOCK_T, TAIL)
    if streams.x is not None:
        xs = load_rows(streams.x, channels, left, 0.0, BLOCK_T, TAIL)
    states = load_rows(later(streams.h, 1), channels, left - 1, 0.0, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    for first in tl.static_range(0, BLOCK_T, BLOCK):
        stopped = 0
        if streams.reset is not None:
            for t in tl.static_range(BLOCK):
                stopped |= (resets[first + t] != 0).to(tl.int32)
        if stopped != 0:
            for t in tl.static_range(BLOCK):
                stop = resets[first + t] != 0
                gate = gate_of(steps[first + t], gating, ACC).to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                before = states[first + t].to(ACC)
                if TAIL:
                    before = tl.where(first + t == left - 1, before_first, before)
                g = gradients[first + t].to(ACC) + carry
                before = tl.where(stop, 0.0, before)
                dx = input_gradient(g, steps[first + t], gate, gating)
                store_row(streams.dx, first + t, dx, channels, left, TAIL)
                if streams.x is not None:
                    before -= xs[first + t].to(ACC)
                slope = gate_gradient(g * before, gate_of(steps[first + t], gating, ACC), gating)
                if total is not None:
                    total += tl.where(first + t < left, slope, 0.0) if TAIL else slope
                else:
                    store_row(streams.da, first + t, slope, channels, left, TAIL)
                carry = tl.where(stop, 0.0, gate * g)
        else:
            weights = ()  # row t of the block: L[t, 0..t]
            values = ()  # dh of the block's rows so far
            reach = tl.full(channels.columns.shape, 1.0, dtype=ACC)
            handed = carry
            for t in tl.static_range(BLOCK):
                gate = gate_of(steps[first + t], gating, ACC).to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                before = states[first + t].to(ACC)
                if TAIL:
                    before = tl.where(first + t == left - 1, before_first, before)
                g = gradients[first + t].to(ACC)
                values += (g,)
                for s in tl.static_range(t):
                    g += weights[s] * values[s]
                g = reach * carry + g
                dx = input_gradient(g, steps[first + t], gate, gating)
                store_row(streams.dx, first + t, dx, channels, left, TAIL)
                if streams.x is not None:
                    before -= xs[first + t].to(ACC)
                slope = gate_gradient(g * before, gate_of(steps[first + t], gating, ACC), gating)
                if total is not None:
                    total += tl.where(first + t < left, slope, 0.0) if TAIL else slope
                else:
                    store_row(streams.da, first + t, slope, channels, left, TAIL)
                handed = gate * g
                # L[t+1, t] = a_t, and everything before is multiplied by it too
                weights = grow(weights, gate, t)
                weights += (gate,)
                reach *= gate
            carry = handed
    return HandedBack(carry, total), most


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_blocked_diagonal(
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
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """given: dh, h, x, dx [B,T,D], a, da [Ba,Ta,D], reset [B,T]; dh_last, h0, dh0, summed: [N,D].

    Grid: N * ceil(D / block_d).
    """
    SIGN: tl.constexpr = 1 if REVERSE else -1
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    streams = streams_at(given, batch, first, T, D, SIGN)
    carry = handed_back(load_state(dh_last, row, channels, ACC), None, summed is not None)
    held = held_gates(streams.a, channels, gating, ACC)
    before_first = load_state(h0, row, channels, ACC)  # [block_d]
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    full = tl.maximum(steps - 1, 0) // BLOCK_T
    for _ in range(full):
        left = BLOCK_T
        carry, most = scan_blocks(
            streams, carry, most, before_first, channels, left, gating, held, BLOCK, BLOCK_T, False
        )
        streams = streams_later(streams, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry, most = scan_blocks(
            streams, carry, most, before_first, channels, left, gating, held, BLOCK, BLOCK_T, True
        )
    store_state(dh0, row, carry.state, channels)
    store_state(summed, row, carry.total, channels)
    done = tl.cast(full, tl.int64) * BLOCK_T
    scan_again(streams, GradientEnds(dh_last, dh0, summed), row, most, before_first, channels, steps, done, gating)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    arguments = gradient_arguments(call, outputs)
    (count, args, constexprs), sums = with_sums(arguments, outputs, arguments[0])
    constexprs |= {"BLOCK": config.block}
    scan = host.channel_launch(linear_scan_bwd_blocked_diagonal, count, read_by(call), config, args, constexprs)
    return [scan, *sums]


VARIANT = backward_of(forward.VARIANT, config=Config, launches=launches)
