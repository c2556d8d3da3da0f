"""temporal_conv1d's triton.rows between two launches for the windows: those read are copied out, those kept are put in.

    before = states[slots];   y = temporal_conv1d(x, before);   states[keep[t]] = the last K-1 inputs at t

Pieces of time run in parallel, and a sequence may be kept in the row that it starts from: what sequences start from is
copied before anything is written, so that the other launches read a tensor that no one changes. A program of the last
launch owns a block of channels of ``span`` tokens and writes for those that are kept.

Bytes: temporal_conv1d's, three times the windows that sequences start from, and those kept. Nothing waits for the host.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import from_parts
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops._triton.tensors import dense, own_channels, rows, store_row
from griffin_kernels.ops.temporal_conv1d import triton_rows
from griffin_kernels.ops.temporal_conv1d._triton_conv import ConvSizes, input_row, load_reach, piece_of, pieces_of
from griffin_kernels.ops.temporal_conv1d_extend.op import Call, continued


@triton.jit(do_not_specialize=["P"])
def temporal_conv1d_starts(states, slots, before, P, SIZES: tl.constexpr):
    """before [N,K-1,D] = states [P,K-1,D] at slots [N], zeros where there is no such row.

    Grid: N * ceil(D / block_d), channels fastest.
    """
    sequence, channels = own_channels(tl.program_id(0), SIZES.D, SIZES.BLOCK_D)
    ROWS: tl.constexpr = SIZES.TAPS - 1
    slot = tl.load(slots + sequence).to(tl.int64)
    there = (slot >= 0) & (slot < P)
    source = states.at + slot * states.batch + channels.columns * states.channel
    target = dense(before, tl.cast(sequence, tl.int64) * ROWS, SIZES.D, 1)
    for j in tl.static_range(ROWS):
        value = tl.load(source + j * far(states.step), mask=channels.inside & there, other=0.0)
        store_row(target, j, value, channels, 0, False)


@triton.jit(do_not_specialize=["T", "parts", "P"])
def temporal_conv1d_windows(x, before, positions, cu_seqlens, keep, states, T, parts, P, SIZES: tl.constexpr):
    """states [P,K-1,D] at keep [B,T]: the last K-1 inputs of each token; x [B,T,D], before [N,K-1,D].

    Grid: pieces of time * ceil(D / block_d), channels fastest.
    """
    TAPS: tl.constexpr = SIZES.TAPS
    place, channels = own_channels(tl.program_id(0), SIZES.D, SIZES.BLOCK_D)
    piece = piece_of(place, cu_seqlens, T, parts, SIZES.SPAN)
    for u in range(0, tl.cast(piece.end - piece.begin, tl.int32)):
        t = piece.begin + u
        row = load_reach(keep, piece, t, True, -1)
        if (row >= 0) & (row < P):
            target = states.at + row.to(tl.int64) * states.batch + channels.columns * states.channel
            for j in tl.static_range(TAPS - 1):
                value = input_row(x, before, piece, t + (j - (TAPS - 2)), channels, TAPS)
                if positions is not None:
                    value = tl.where(load_reach(positions, piece, t, True, 0) >= TAPS - 2 - j, value, 0.0)
                tl.store(target + j * far(states.step), value, mask=channels.inside)


def launches(call: Call, outputs: dict[str, Any], config: triton_rows.Config) -> list[Launch]:
    """The windows copied out, the convolution, those kept put in; a filter of one tap has none."""
    x, (taps, width) = call.x, call.weight.shape
    count, parts = pieces_of(call, config.span)
    sequences = call.slots.shape[0]
    before = x.new_empty(sequences, taps - 1, width)
    made = {name: value for name, value in outputs.items() if name == "y"}
    convolution = triton_rows.launches(continued(call, before), made, config)
    outputs["y"], outputs["states"] = made["y"], call.states
    if taps == 1:
        return convolution
    sizes = ConvSizes(width, taps, host.wide(x.dtype), config.span, config.block_t, config.block_d)
    blocks = triton.cdiv(width, config.block_d)
    shared = {"states": rows(call.states), "P": call.states.shape[0]}
    facts: dict[str, Any] = {"constexprs": {"SIZES": sizes}, "num_warps": config.num_warps, "claims": Claims()}
    starts = Launch(
        kernel=temporal_conv1d_starts,
        grid=(sequences * blocks,),
        args=shared | {"slots": call.slots.contiguous(), "before": before},
        tile=config.block_d * (taps - 1),
        **facts,
    )
    windows = Launch(
        kernel=temporal_conv1d_windows,
        grid=(count * blocks,),
        args=shared
        | {
            "x": rows(x),
            "before": rows(before),
            "positions": rows(call.segment_pos),
            "cu_seqlens": call.cu_seqlens,
            "keep": rows(call.keep),
            "T": x.shape[1],
            "parts": parts,
        },
        tile=config.block_d,
        **facts,
    )
    return [starts, *convolution, windows]


VARIANT = dataclasses.replace(
    triton_rows.VARIANT,
    op="temporal_conv1d_extend",
    summary="one pass of the convolution between two launches for the windows",
    run=from_parts,
    launches=launches,
)
