"""One pass over a piece of time, the K-1 inputs before a step in registers, ``block_t`` rows loaded ahead.

    y_t = act(bias + sum_k weight[K-1-k] x_{t-k}) + residual_t

A program owns ``block_d`` channels of ``span`` steps of one batch entry or packed sequence. It issues the loads of
block_t rows before it uses the first, widens each row once and keeps the last K-1 widened; only what precedes the piece
is read a second time, K-1 rows that a neighbour reads too. Only the last tile is masked in time. The program that has a
sequence's last step writes its new state.

Bytes per element: the ideal two data elements (4 in bf16, 8 in fp32), from L2 2 (1 + (K-1) / span) of x. Bound by
memory bandwidth: in bf16 at K = 4 the main loop compiled for sm_90 has 6.4 (8 channels a thread) to 7.7 instructions
per element, with positions 10.7 to 14.2, of the 35 that an H100 issues in the time of 4 bytes.
Source: the register window of a direct FIR filter; Dao-AILab/causal-conv1d has the same in CUDA for K = 2 .. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from griffin_kernels.contract import Variant
from griffin_kernels.ops._triton.activations import activated
from griffin_kernels.ops._triton.tensors import Rows, at, load_flags, load_rows, load_state, own_channels, store_row
from griffin_kernels.ops.temporal_conv1d import _triton_conv
from griffin_kernels.ops.temporal_conv1d._triton_conv import input_row, load_taps, piece_of, store_new_state


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    span: int = 64
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def conv_tile(
    x, positions, residual, y, batch, time, before, taps, bias, channels, left, SIZES: tl.constexpr, TAIL: tl.constexpr
):
    """The steps of a tile from ``time`` on, fewer in the tail, after the K-1 inputs ``before``, latest first.

    Gives those of the next tile.
    """
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    rows = load_rows(at(x, batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    reach = load_flags(at(positions, batch, time, 1), left, 0, BLOCK_T, TAIL)
    if residual is not None:
        added = load_rows(at(residual, batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        window = (rows[u].to(bias.dtype),)
        window += before
        total = bias + taps[0] * window[0]
        for k in tl.static_range(1, len(taps)):
            earlier = window[k]
            if positions is not None:
                earlier = tl.where(reach[u] >= k, earlier, 0.0)
            total += taps[k] * earlier
        total = activated(total, SIZES.ACTIVATION)
        if residual is not None:
            total += added[u].to(bias.dtype)
        store_row(at(y, batch, time, 1), u, total, channels, left, TAIL)
        before = window[: len(before)]
    return before


@triton.jit(do_not_specialize=["T", "parts"])
def temporal_conv1d_rows(
    x, weight, bias, state, positions, cu_seqlens, residual, y, new_state, T, parts, SIZES: tl.constexpr
):
    """x, residual, y: [B,T,D]; weight [K,D]; bias [D] or None; state, new_state: [N,K-1,D]; positions [B,T].

    Grid: pieces of time * ceil(D / block_d), channels fastest.
    """
    TAPS: tl.constexpr = SIZES.TAPS
    BLOCK_T: tl.constexpr = SIZES.BLOCK_T
    place, channels = own_channels(tl.program_id(0), SIZES.D, SIZES.BLOCK_D)
    piece = piece_of(place, cu_seqlens, T, parts, SIZES.SPAN)
    batch, time = piece.batch, piece.first + piece.begin
    taps = load_taps(weight, channels, TAPS, SIZES.ACC)
    constant = load_state(bias, 0, channels, SIZES.ACC)
    before = ()
    for k in tl.static_range(1, TAPS):
        earlier = input_row(x, state, piece, piece.begin - k, channels, TAPS, piece.begin < piece.end)
        before += (earlier.to(SIZES.ACC),)
    steps = tl.cast(piece.end - piece.begin, tl.int32)
    full = tl.maximum(steps, 0) // BLOCK_T
    out = Rows(y, tl.cast(T, tl.int64) * SIZES.D, SIZES.D, 1)
    for _ in range(full):
        before = conv_tile(
            x, positions, residual, out, batch, time, before, taps, constant, channels, BLOCK_T, SIZES, False
        )
        time += BLOCK_T
    left = steps - full * BLOCK_T
    if left > 0:
        conv_tile(x, positions, residual, out, batch, time, before, taps, constant, channels, left, SIZES, True)
    store_new_state(x, state, positions, new_state, piece, channels, SIZES.D, TAPS)


launches = _triton_conv.forward(temporal_conv1d_rows)

VARIANT = Variant(
    op="temporal_conv1d",
    name="triton.rows",
    summary="one pass, earlier inputs in registers, rows loaded ahead",
    config=Config,
    axes={"span": (32, 64, 128, 256), "block_t": (8, 16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=_triton_conv.unfit,
    rank=lambda case, device: 30,
    launches=launches,
)
