"""A tile of steps and channels at a time, dy loaded once per tap at K shifted places, the weights' sums kept as tiles.

    dx_s = sum_k weight[K-1-k] dy_{s+k},  dweight[K-1-k] += dy_{s+k} x_s,  dbias += dy_s

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
from griffin_kernels.ops.temporal_conv1d_bwd._triton_conv_gradient import end_piece, first_kept_step


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t, block_d: steps and channels of a tile."""

    span: int = 128
    block_t: int = 8
    block_d: int = 128
    num_warps: int = 4


@triton.jit
def conv_tile(
    x, dy, positions, leaving, dx, piece, begin, kept, sums, taps, channels, SIZES: tl.constexpr, ENDS: tl.constexpr
):
    """BLOCK_T steps from ``begin`` on, dx at the sequence's first. Gives the K+1 sums, [block_t, block_d].

    ENDS: the piece ends, or the sequence does K-1 steps later; its new state holds the steps from ``kept`` on.
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
    grown = ()
    for k in tl.static_range(TAPS):
        inside = s + k < piece.length
        place = tile_at(dy, batch, time, rows + k, channels, D, BLOCK_T + TAPS)
        gradient = tl.load(place, mask=there & inside[:, None] if ENDS else full, other=0.0).to(ACC)
        if positions is not None and k > 0:
            reach = load_reach(positions, piece, s + k, inside, 0)
            gradient = tl.where((reach >= k)[:, None], gradient, 0.0)
        total += taps[k][None, :] * gradient
        grown += (sums[k] + gradient * value,)
        if k == 0:
            bias = sums[TAPS] + gradient
    grown += (bias,)
    out = tile_at(dense(dx, begin, D, 1), 0, 0, rows, channels, D, BLOCK_T)
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)
    return grown


@triton.jit(do_not_specialize=["T", "parts"])
def temporal_conv1d_bwd_tile(
    dy, dnew_state, x, weight, state, positions, cu_seqlens, gradients, T, parts, SIZES: tl.constexpr
):
    """dy, x: [B,T,D]; weight [K,D]; dnew_state, state: [N,K-1,D]; positions [B,T].

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
    kept = first_kept_step(positions, piece, TAPS)
    tiles = ()
    for _ in tl.static_range(TAPS + 1):
        tiles += (tl.zeros((BLOCK_T, BLOCK_D), dtype=SIZES.ACC),)
    steps = tl.cast(tl.maximum(end - begin, 0), tl.int32)
    dx = gradients.x + (piece.batch * T + piece.first) * D
    for ahead in range(0, steps, BLOCK_T):
        t = begin + ahead
        if (t + BLOCK_T <= end) & (t + (BLOCK_T + TAPS - 1) <= length):
            tiles = conv_tile(x, dy, positions, None, dx, piece, t, kept, tiles, taps, channels, SIZES, False)
        else:
            tiles = conv_tile(x, dy, positions, dnew_state, dx, piece, t, kept, tiles, taps, channels, SIZES, True)
    sums = ()
    for k in tl.static_range(TAPS + 1):
        sums += (tl.sum(tiles[k], axis=0),)
    end_piece(dy, positions, dnew_state, state, gradients, place, piece, kept, sums, taps, channels, D)


VARIANT = backward_of(
    forward.VARIANT,
    summary="tiles of steps and channels, one shifted load of dy per tap",
    config=Config,
    axes={"span": (64, 128, 256, 512), "block_t": (8, 16), "block_d": (64, 128), "num_warps": (4, 8)},
    launches=_triton_conv_gradient.backward(temporal_conv1d_bwd_tile, tile=True),
    traffic=_triton_conv_gradient.traffic,
)
