"""A tile of steps and channels per program, loaded once per tap at K shifted places.

    y_t = act(bias + sum_k weight[K-1-k] x_{t-k}) + residual_t

No step waits for another, and all threads of a tile may share few channels: many more programs than triton.rows, for
short or narrow problems. The first tap's load brings a tile from memory; the K-1 shifted ones ask for the same rows
again and find them in L1 or L2, which is what this form spends instead of registers. Tiles that reach past either end
of a sequence are masked in time, others are not; a state is read by the tiles at a sequence's start.

Bytes per element: the ideal two data elements from memory (4 in bf16, 8 in fp32), K + 1 of them from L1. Bound by
memory bandwidth, or by the rate of load instructions where K is large.
Source: flash-linear-attention's Triton convolution has tiles with shifted loads too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
import triton.language as tl

from griffin_kernels.contract import Variant
from griffin_kernels.ops._triton.activations import activated
from griffin_kernels.ops._triton.tensors import dense, load_state, own_channels
from griffin_kernels.ops.temporal_conv1d import _triton_conv
from griffin_kernels.ops.temporal_conv1d._triton_conv import load_reach, piece_of, rows_at, store_new_state, tile_at


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of a tile."""

    block_t: int = 16
    block_d: int = 128
    num_warps: int = 2


@triton.jit
def conv_tile(x, state, positions, residual, y, weight, bias, piece, channels, SIZES: tl.constexpr, ENDS: tl.constexpr):
    """The BLOCK_T steps of a piece, the first of which y is at. ENDS: some taps or steps are outside the sequence."""
    TAPS: tl.constexpr = SIZES.TAPS
    ACC: tl.constexpr = SIZES.ACC
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    t = piece.begin + rows
    inside = channels.inside[None, :]
    there = (t < piece.length)[:, None] & inside
    time = piece.first + piece.begin
    total = tl.zeros((BLOCK_T, channels.columns.shape[0]), dtype=ACC)
    total += load_state(bias, 0, channels, ACC)[None, :]
    if positions is not None:
        reach = load_reach(positions, piece, t, t < piece.length, 0)
    for k in tl.static_range(TAPS):
        inputs = tile_at(x, piece.batch, time, rows - k, channels, SIZES.D, BLOCK_T + TAPS)
        if ENDS:
            value = tl.load(inputs, mask=there & (t >= k)[:, None], other=0.0)
        elif channels.mask is not None:
            value = tl.load(inputs, mask=inside, other=0.0)
        else:
            value = tl.load(inputs)
        if ENDS and state is not None and k > 0:
            before = rows_at(state, piece.row, t + (TAPS - 1 - k), channels)
            value = tl.where((t < k)[:, None], tl.load(before, mask=there & (t < k)[:, None], other=0.0), value)
        value = value.to(ACC)
        if positions is not None and k > 0:
            value = tl.where((reach >= k)[:, None], value, 0.0)
        total += load_state(weight, TAPS - 1 - k, channels, ACC)[None, :] * value
    outputs = tile_at(y, 0, 0, rows, channels, SIZES.D, BLOCK_T)
    total = activated(total, SIZES.ACTIVATION)
    if residual is not None:
        added = tile_at(residual, piece.batch, time, rows, channels, SIZES.D, BLOCK_T)
        if ENDS:
            total += tl.load(added, mask=there, other=0.0).to(ACC)
        elif channels.mask is not None:
            total += tl.load(added, mask=inside, other=0.0).to(ACC)
        else:
            total += tl.load(added).to(ACC)
    total = total.to(outputs.dtype.element_ty)
    if ENDS:
        tl.store(outputs, total, mask=there)
    elif channels.mask is not None:
        tl.store(outputs, total, mask=inside)
    else:
        tl.store(outputs, total)


@triton.jit(do_not_specialize=["T", "parts"])
def temporal_conv1d_tile(
    x, weight, bias, state, positions, cu_seqlens, residual, y, new_state, T, parts, SIZES: tl.constexpr
):
    """x, residual, y: [B,T,D]; weight [K,D]; bias [D] or None; state, new_state: [N,K-1,D]; positions [B,T].

    Grid: pieces of SPAN steps * ceil(D / block_d), channels fastest.
    """
    D: tl.constexpr = SIZES.D
    place, channels = own_channels(tl.program_id(0), D, SIZES.BLOCK_D)
    piece = piece_of(place, cu_seqlens, T, parts, SIZES.SPAN)
    out = dense(y, piece.batch * T + piece.first + piece.begin, D, 1)
    if (piece.begin >= SIZES.TAPS - 1) & (piece.begin + SIZES.SPAN <= piece.length):
        conv_tile(x, None, positions, residual, out, weight, bias, piece, channels, SIZES, False)
    elif piece.begin < piece.length:
        conv_tile(x, state, positions, residual, out, weight, bias, piece, channels, SIZES, True)
    store_new_state(x, state, positions, new_state, piece, channels, D, SIZES.TAPS)


VARIANT = Variant(
    op="temporal_conv1d",
    name="triton.tile",
    summary="tiles of steps and channels, one shifted load per tap",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (64, 128), "num_warps": (1, 2, 4)},
    reject=functools.partial(_triton_conv.unfit, tile=True),
    rank=lambda case, device: 25,
    launches=_triton_conv.forward(temporal_conv1d_tile, tile=True),
)
