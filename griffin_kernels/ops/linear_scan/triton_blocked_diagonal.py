"""The scan as a product with its transfer matrix, cut into blocks along the diagonal.

    h = L x + reach h_in,   L[t, s] = a_t a_{t-1} ... a_{s+1} for s <= t (1 on the diagonal),   reach_t = L[t, 0] a_0

L is lower triangular, T x T per channel. Its diagonal blocks of ``block`` x ``block`` are applied densely, by rows in
registers; all that lies below them acts through one number per channel, the state that enters the block. The chain
from block to block is then a single multiply-add per ``block`` steps, and the dense parts of different blocks are
independent of each other: more arithmetic than triton.sequential, shorter dependences. Rows are loaded ahead alike.
Channels with a gate beyond [-1, 1] are done again, step by step: their products may overflow where the state does not.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32). About ``block`` + 1 operations per element:
bound by memory bandwidth up to a block of 8, by instruction issue beyond.
Source: the block decomposition of semiseparable matrices of arXiv 2405.21060 (Mamba-2), section 6, with a state of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.gating import gate_of, held_gates, input_of, load_steps
from griffin_kernels.ops._triton.scan import grow, span
from griffin_kernels.ops._triton.tensors import load_flags, load_rows, load_state, own_channels, store_row, store_state
from griffin_kernels.ops.linear_scan._scan_launches import scan_arguments
from griffin_kernels.ops.linear_scan._triton_scan import Carried, ScanEnds, scan_again, streams_at, streams_later
from griffin_kernels.ops.linear_scan.op import Call


@dataclass(frozen=True)
class Config:
    """block: rows of a diagonal block. block_t: rows loaded ahead, a multiple of it. block_d: channels per program."""

    block: int = 8
    block_t: int = 32
    block_d: int = 64
    num_warps: int = 1


@bundling
def scan_blocks(
    streams, carried, most, channels, left, gating, held, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr, TAIL: tl.constexpr
):
    """BLOCK_T steps, fewer in the tail. Streams are at the tile's first step.

    Gives the carry and the largest |a| so far, ``most``. A block with a reset goes row by row: in a product, what came
    before the reset would count as a factor of zero.
    """
    ACC: tl.constexpr = most.dtype
    NEUTRAL: tl.constexpr = 1.0 if gating is None or not gating.log else 0.0
    carry, product = carried.state, carried.product
    xs = load_rows(streams.x, channels, left, 0.0, BLOCK_T, TAIL)
    steps = load_steps(streams.a, held, channels, left, NEUTRAL, BLOCK_T, TAIL)
    resets = load_flags(streams.reset, left, 0, BLOCK_T, TAIL)
    for first in tl.static_range(0, BLOCK_T, BLOCK):
        stopped = 0
        if streams.reset is not None:
            for t in tl.static_range(BLOCK):
                stopped |= (resets[first + t] != 0).to(tl.int32)
        if stopped != 0:
            for t in tl.static_range(BLOCK):
                carry = tl.where(resets[first + t] != 0, 0.0, carry)
                gate = gate_of(steps[first + t], gating, ACC).to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                carry = gate * carry + input_of(xs[first + t].to(ACC), steps[first + t], gate, gating)
                if product is not None:
                    product = gate * tl.where(resets[first + t] != 0, 0.0, product)
                store_row(streams.h, first + t, carry, channels, left, TAIL)
        else:
            weights = ()  # row t of the block: L[t, 0..t-1]
            values = ()  # x of the block's rows so far
            reach = tl.full(channels.columns.shape, 1.0, dtype=ACC)
            state = carry
            for t in tl.static_range(BLOCK):
                gate = gate_of(steps[first + t], gating, ACC).to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                value = input_of(xs[first + t].to(ACC), steps[first + t], gate, gating)
                weights = grow(weights, gate, t)
                state = value
                for s in tl.static_range(t):
                    state += weights[s] * values[s]
                # L[t+1, t] = a_{t+1}, so the newest weight starts as 1
                weights += (tl.full(channels.columns.shape, 1.0, dtype=ACC),)
                values += (value,)
                reach *= gate
                state = reach * carry + state
                store_row(streams.h, first + t, state, channels, left, TAIL)
            carry = state
            if product is not None:
                product *= reach
    return Carried(carry, product), most


@triton.jit(do_not_specialize=["T"])
def linear_scan_blocked_diagonal(
    given,
    h0,
    cu_seqlens,
    h_last,
    a_prod,
    T,
    gating,
    D: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """given: x, h [B,T,D], a [Ba,Ta,D], reset [B,T]; h0, h_last, a_prod: [N,D]. Grid: N * ceil(D / block_d)."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    row, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    batch, first, steps = span(row, cu_seqlens, T, REVERSE)
    streams = streams_at(given, batch, first, T, D, SIGN)
    state = load_state(h0, row, channels, ACC)  # [block_d]
    carry = Carried(state, None if a_prod is None else tl.full((BLOCK_D,), 1.0, dtype=ACC))
    held = held_gates(streams.a, channels, gating, ACC)
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    full = steps // BLOCK_T
    for _ in range(full):
        carry, most = scan_blocks(streams, carry, most, channels, BLOCK_T, gating, held, BLOCK, BLOCK_T, False)
        streams = streams_later(streams, BLOCK_T)
    left = steps - full * BLOCK_T
    if left > 0:
        carry, most = scan_blocks(streams, carry, most, channels, left, gating, held, BLOCK, BLOCK_T, True)
    store_state(h_last, row, carry.state, channels)
    store_state(a_prod, row, carry.product, channels)
    done = tl.cast(full, tl.int64) * BLOCK_T
    scan_again(streams, ScanEnds(h0, h_last, a_prod), row, most, channels, steps, done, gating)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    count, args, constexprs = scan_arguments(call, outputs)
    constexprs |= {"BLOCK": config.block}
    return [host.channel_launch(linear_scan_blocked_diagonal, count, (call.x, call.a), config, args, constexprs)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.block_t % config.block:
        return f"block_t={config.block_t} is not a multiple of block={config.block}"
    return host.unfit(case, device, config.block_d, config.num_warps)


VARIANT = Variant(
    op="linear_scan",
    name="triton.blocked_diagonal",
    summary="diagonal blocks of the transfer matrix applied densely, the rest through the carry",
    config=Config,
    axes={"block": (4, 8, 16), "block_t": (16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=lambda case, device: 14,  # not the default until measured to be faster than triton.sequential somewhere
    launches=launches,
)
