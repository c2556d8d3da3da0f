"""A tile of steps and channels at a time, dy loaded once per tap at K shifted places, the weights' sums kept as tiles.

    dx_s = sum_k weight[K-1-k] g_{s+k},  dweight[K-1-k] += g_{s+k} x_s,  dbias += g_s

g is dy, or with an activation dy times its slope at the sum: each tile does that again from 2 K - 1 shifted loads of x.

The mirror of temporal_conv1d/triton.tile: no step waits for another, and several warps share few channels. A program
goes through the tiles of ``span`` steps; the K+1 sums stay tiles in registers until its end, where each is summed over
its steps once. Tiles that reach past the end of the piece or read past that of the sequence are masked in time, others
are not. The program with a sequence's first step also takes the rows of its state.

Bytes per element: the ideal three data elements from memory (6 in bf16, 12 in fp32), K + 2 from L1, and 8 (K+1) / span
for the sums of a piece. Bound by memory bandwidth, or by the rate of load instructions where K is large.
Source: the chain rule on the sum in temporal_conv1d/op.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from griffin_kernels.ops._triton.tensors import dense, own_channels
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import triton_tile as forward
from griffin_kernels.ops.temporal_conv1d._triton_conv import load_reach, load_taps, piece_of, rows_at, tile_at
from griffin_kernels.ops.temporal_conv1d_bwd import _triton_conv_gradient
from griffin_kernels.ops.temporal_conv1d_bwd._triton_conv_gradient import (
    end_piece,
    first_kept_step,
    forward_again,
    of_sum,
)


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t, block_d: steps and channels of a tile."""

    span: int = 128
    block_t: int = 8
    block_d: int = 128
    num_warps: int = 4


@triton.jit
def input_tile(x, state, piece, begin, m, channels, SIZES: tl.constexpr, ENDS: tl.constexpr):
    """[block_t, block_d]: inputs of the steps ``m`` after those of a tile. ENDS: some are in the state, or none's."""
    D: tl.constexpr = SIZES.D
    TAPS: tl.constexpr = SIZES.TAPS
    rows = tl.arange(0, SIZES.BLOCK_T)
    step = begin + m + rows
    inside = tl.full((SIZES.BLOCK_T, 1), 1, tl.int1) & channels.inside[None, :]
    place = tile_at(x, piece.batch, piece.first + begin, rows + m, channels, D, SIZES.BLOCK_T + TAPS)
    if ENDS:
        before = (step < 0)[:, None]
        value = tl.load(place, mask=inside & (step < piece.length)[:, None] & ~before, other=0.0)
        if state is not None and TAPS > 1:
            row = rows_at(state, piece.row, step + (TAPS - 1), channels)
            value = tl.where(before, tl.load(row, mask=inside & before, other=0.0), value)
    else:
        value = tl.load(place, mask=inside, other=0.0)
    return value


@triton.jit
def conv_tile(
    x,
    dy,
    positions,
    leaving,
    dx,
    again,
    piece,
    begin,
    kept,
    sums,
    taps,
    channels,
    SIZES: tl.constexpr,
    ENDS: tl.constexpr,
):
    """BLOCK_T steps from ``begin`` on, dx at the sequence's first. Gives the K+1 sums, [block_t, block_d].

    ENDS: the piece ends, or the sequence does K-1 steps later; its new state holds the steps from ``kept`` on. again:
    None without an activation; with one ENDS also says that some inputs are before the sequence.
    """
    D: tl.constexpr = SIZES.D
    TAPS: tl.constexpr = SIZES.TAPS
    ACC: tl.constexpr = SIZES.ACC
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    s = begin + rows
    batch, time = piece.batch, piece.first + begin
    full = tl.full((BLOCK_T, 1), 1, tl.int1) & channels.inside[None, :]
    there = (s < piece.end)[:, None] & full
    mask = there if ENDS else full
    value = tl.load(tile_at(x, batch, time, rows, channels, D, BLOCK_T), mask=mask, other=0.0).to(ACC)
    total = tl.zeros((BLOCK_T, channels.columns.shape[0]), dtype=ACC)
    if ENDS and leaving is not None and TAPS > 1:
        row = rows_at(leaving, piece.row, s - piece.length + (TAPS - 1), channels)
        total += tl.load(row, mask=there & (s >= kept)[:, None], other=0.0).to(ACC)
    around = ()
    if again is not None:
        for m in tl.static_range(1 - TAPS, TAPS):
            around += (input_tile(x, again.state, piece, begin, m, channels, SIZES, ENDS),)
    wide = ()
    for k in tl.static_range(TAPS):
        wide += (taps[k][None, :],)
    grown = ()
    for k in tl.static_range(TAPS):
        inside = s + k < piece.length
        place = tile_at(dy, batch, time, rows + k, channels, D, BLOCK_T + TAPS)
        gradient = tl.load(place, mask=there & inside[:, None] if ENDS else full, other=0.0).to(ACC)
        if positions is not None:
            reach = load_reach(positions, piece, s + k, inside, 0)[:, None]
        if again is not None:
            inputs = ()
            for j in tl.static_range(TAPS):
                inputs += (around[TAPS - 1 + k - j],)
            back = TAPS
            if positions is not None:
                back = reach
            gradient = of_sum(gradient, inputs, back, wide, again.bias[None, :], SIZES.ACTIVATION)
            if ENDS:
                # a select: beyond the end are rows of others, or none
                gradient = tl.where(there & inside[:, None], gradient, 0.0)
        if positions is not None and k > 0:
            gradient = tl.where(reach >= k, gradient, 0.0)
        total += wide[k] * gradient
        grown += (sums[k] + gradient * value,)
        if k == 0:
            bias = sums[TAPS] + gradient
    grown += (bias,)
    out = tile_at(dense(dx, begin, D, 1), 0, 0, rows, channels, D, BLOCK_T)
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)
    return grown


@triton.jit(do_not_specialize=["T", "parts"])
def temporal_conv1d_bwd_tile(
    dy, dnew_state, x, weight, bias, state, positions, cu_seqlens, gradients, T, parts, SIZES: tl.constexpr
):
    """dy, x: [B,T,D]; weight [K,D]; bias [D], None unless slopes want it; positions [B,T].

    dnew_state, state: [N,K-1,D].

    Grid: pieces of time * ceil(D / block_d), channels fastest.
    """
    D: tl.constexpr = SIZES.D
    TAPS: tl.constexpr = SIZES.TAPS
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    place, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    piece = piece_of(place, cu_seqlens, T, parts, SIZES.SPAN)
    begin, end, length = piece.begin, piece.end, piece.length
    taps = load_taps(weight, channels, TAPS, SIZES.ACC)
    again = forward_again(state, bias, channels, SIZES)
    BEFORE: tl.constexpr = TAPS - 1 if SIZES.ACTIVATION > 0 else 0
    kept = first_kept_step(positions, piece, TAPS)
    tiles = ()
    for _ in tl.static_range(TAPS + 1):
        tiles += (tl.zeros((BLOCK_T, BLOCK_D), dtype=SIZES.ACC),)
    steps = tl.cast(tl.maximum(end - begin, 0), tl.int32)
    dx = gradients.x + (piece.batch * T + piece.first) * D
    for ahead in range(0, steps, BLOCK_T):
        t = begin + ahead
        if (t >= BEFORE) & (t + BLOCK_T <= end) & (t + (BLOCK_T + TAPS - 1) <= length):
            tiles = conv_tile(x, dy, positions, None, dx, again, piece, t, kept, tiles, taps, channels, SIZES, False)
        else:
            tiles = conv_tile(
                x, dy, positions, dnew_state, dx, again, piece, t, kept, tiles, taps, channels, SIZES, True
            )
    sums = ()
    for k in tl.static_range(TAPS + 1):
        sums += (tl.sum(tiles[k], axis=0),)
    end_piece(dy, x, positions, dnew_state, state, again, gradients, place, piece, kept, sums, taps, channels, SIZES)


VARIANT = backward_of(
    forward.VARIANT,
    summary="tiles of steps and channels, one shifted load of dy per tap",
    config=Config,
    axes={"span": (64, 128, 256, 512), "block_t": (8, 16), "block_d": (64, 128), "num_warps": (4, 8)},
    launches=_triton_conv_gradient.backward(temporal_conv1d_bwd_tile, tile=True),
    traffic=_triton_conv_gradient.traffic,
)
