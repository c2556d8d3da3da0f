"""One pass from the last step to the first, the K-1 later gradients in registers, ``block_t`` rows loaded ahead.

    dx_s = sum_k weight[K-1-k] dy_{s+k},  dweight[K-1-k] += dy_{s+k} x_s,  dbias += dy_s

The mirror of temporal_conv1d/triton.rows. A program owns ``block_d`` channels of ``span`` steps of one batch entry or
packed sequence and goes down in time, so that dy_{s+1} .. dy_{s+K-1} are what it has just read; it keeps them widened,
with the positions that say which of them count, and the K+1 sums of the weights. At a sequence's start it goes on
through the rows of the state, whose gradients are dstate. A sequence's last K-1 steps, and what is left of whole tiles,
form the tile that is visited first: it alone is masked and adds the gradient of the new state.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32), and 8 (K+1) / span for the sums of a piece,
written and read (K = 4, span 128: 0.3). Bound by memory bandwidth: in bf16 at K = 4 the main loop compiled for sm_90
has 13 (8 channels a thread) to 15 instructions per element, with positions 17 to 24, of the 53 that an H100 issues in
the time of 6 bytes.
Source: the chain rule on the sum in temporal_conv1d/op.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from griffin_kernels.ops._triton.tensors import Rows, at, load_flags, load_rows, own_channels, store_row
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import triton_rows as forward
from griffin_kernels.ops.temporal_conv1d._triton_conv import load_reach, load_row, load_taps, piece_of
from griffin_kernels.ops.temporal_conv1d_bwd import _triton_conv_gradient
from griffin_kernels.ops.temporal_conv1d_bwd._triton_conv_gradient import end_piece, first_kept_step


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    span: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def conv_tile(x, dy, positions, leaving, dx, piece, begin, left, kept, carried, taps, channels, ROWS: tl.constexpr):
    """ROWS steps from ``begin`` on, the last first. Gives what is carried to the tile below: sums, window and reaches.

    window: dy of the K-1 steps that follow, with the positions ``reaches``. left: steps that are the piece's, where not
    all are; the sequence's new state holds its steps from ``kept`` on.
    """
    ENDING: tl.constexpr = left is not None
    ACC: tl.constexpr = taps[0].dtype
    TAPS: tl.constexpr = len(taps)
    batch, time = piece.batch, piece.first + begin
    beyond, kept = tl.cast(piece.length - begin, tl.int32), tl.cast(kept - begin, tl.int32)
    gradients = load_rows(at(dy, batch, time, 1), channels, beyond, 0.0, ROWS, ENDING)
    values = load_rows(at(x, batch, time, 1), channels, left, 0.0, ROWS, ENDING)
    sums, window, reaches = carried
    known = load_flags(at(positions, batch, time, 1), beyond, 0, ROWS, ENDING)
    for u in tl.static_range(ROWS - 1, -1, -1):
        following = (gradients[u].to(ACC),)
        following += window
        reached = (known[u],)
        reached += reaches
        value = values[u].to(ACC)
        through = 0.0
        if ENDING and leaving is not None and TAPS > 1:
            row = load_row(leaving, piece.row, u - beyond + TAPS - 1, channels, (u < left) & (u >= kept))
            through = row.to(ACC)
        total = through + taps[0] * following[0]
        grown = (sums[0] + following[0] * value,)
        for k in tl.static_range(1, TAPS):
            gradient = following[k]
            if positions is not None:
                gradient = tl.where(reached[k] >= k, gradient, 0.0)
            total += taps[k] * gradient
            grown += (sums[k] + gradient * value,)
        grown += (sums[TAPS] + (tl.where(u < left, following[0], 0.0) if ENDING else following[0]),)
        store_row(at(dx, batch, time, 1), u, total, channels, left, ENDING)
        sums, window, reaches = grown, following[: TAPS - 1], reached[: len(reaches)]
    return sums, window, reaches


@triton.jit(do_not_specialize=["T", "parts"])
def temporal_conv1d_bwd_rows(
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
    # the masked tile holds all steps of the piece that the new state holds too
    steps = tl.cast(tl.maximum(end - begin, 0), tl.int32)
    full = steps // BLOCK_T
    if end > length - (TAPS - 1):
        full = tl.maximum(steps - (TAPS - 1), 0) // BLOCK_T
    left = steps - full * BLOCK_T
    t = begin + full * BLOCK_T
    top = end
    if left > 0:
        top = t + (BLOCK_T + TAPS - 1)
    sums = (tl.zeros((BLOCK_D,), dtype=SIZES.ACC), tl.zeros((BLOCK_D,), dtype=SIZES.ACC))
    window = ()
    reaches = ()
    for k in tl.static_range(TAPS - 1):
        sums += (tl.zeros((BLOCK_D,), dtype=SIZES.ACC),)
        window += (load_row(dy, piece.batch, piece.first + (top + k), channels, top + k < length).to(SIZES.ACC),)
        if positions is not None:
            reaches += (load_reach(positions, piece, top + k, top + k < length, 0),)
    dx = Rows(gradients.x, tl.cast(T, tl.int64) * D, D, 1)
    carried = sums, window, reaches
    if left > 0:
        ROWS: tl.constexpr = BLOCK_T + TAPS - 1
        carried = conv_tile(x, dy, positions, dnew_state, dx, piece, t, left, kept, carried, taps, channels, ROWS)
    for _ in range(full):
        t -= BLOCK_T
        carried = conv_tile(x, dy, positions, None, dx, piece, t, None, 0, carried, taps, channels, BLOCK_T)
    end_piece(dy, positions, dnew_state, state, gradients, place, piece, kept, carried[0], taps, channels, D)


launches = _triton_conv_gradient.backward(temporal_conv1d_bwd_rows)

VARIANT = backward_of(
    forward.VARIANT,
    summary="one pass, later gradients and sums in registers, rows loaded ahead",
    config=Config,
    axes={"span": (32, 64, 128, 256, 512), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    launches=launches,
    traffic=_triton_conv_gradient.traffic,
)
