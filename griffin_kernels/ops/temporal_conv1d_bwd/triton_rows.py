"""One pass from the last step to the first, the K-1 later gradients in registers, ``block_t`` rows loaded ahead.

    dx_s = sum_k weight[K-1-k] g_{s+k},  dweight[K-1-k] += g_{s+k} x_s,  dbias += g_s

g is dy, or with an activation dy times its slope at the sum, which is done again from the inputs of the tile and of the
K-1 steps before it.

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
from griffin_kernels.ops.temporal_conv1d._triton_conv import input_row, load_reach, load_row, load_taps, piece_of
from griffin_kernels.ops.temporal_conv1d_bwd import _triton_conv_gradient
from griffin_kernels.ops.temporal_conv1d_bwd._triton_conv_gradient import (
    end_piece,
    first_kept_step,
    forward_again,
    of_sum,
    sum_gradient,
)


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    span: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def conv_tile(
    x, dy, positions, leaving, dx, again, piece, begin, left, kept, carried, taps, channels, SIZES: tl.constexpr
):
    """The steps of a tile from ``begin`` on, the last first. Gives what is carried to the tile below: sums, window and
    reaches.

    window: what reaches the sums of the K-1 steps that follow, with the positions ``reaches``. left: steps that are the
    piece's, where not all are; the tile then has K-1 more, and the sequence's new state holds its steps from ``kept``
    on. again: None without an activation.
    """
    ENDING: tl.constexpr = left is not None
    ACC: tl.constexpr = taps[0].dtype
    TAPS: tl.constexpr = len(taps)
    ROWS: tl.constexpr = SIZES.BLOCK_T + (TAPS - 1 if ENDING else 0)
    batch, time = piece.batch, piece.first + begin
    beyond, kept = tl.cast(piece.length - begin, tl.int32), tl.cast(kept - begin, tl.int32)
    gradients = load_rows(at(dy, batch, time, 1), channels, beyond, 0.0, ROWS, ENDING)
    known_left = left if again is None else beyond  # slopes want the inputs of all steps that follow
    values = load_rows(at(x, batch, time, 1), channels, known_left, 0.0, ROWS, ENDING)
    past = ()
    if again is not None:
        for k in tl.static_range(1, TAPS):
            past += (input_row(x, again.state, piece, begin - k, channels, TAPS),)
    sums, window, reaches = carried
    known = load_flags(at(positions, batch, time, 1), beyond, 0, ROWS, ENDING)
    for u in tl.static_range(ROWS - 1, -1, -1):
        current = gradients[u].to(ACC)
        value = values[u].to(ACC)
        if again is not None:
            inputs = ()
            for k in tl.static_range(TAPS):
                inputs += (values[u - k],) if k <= u else (past[k - u - 1],)
            reach = TAPS
            if positions is not None:
                reach = known[u]
            current = of_sum(current, inputs, reach, taps, again.bias, SIZES.ACTIVATION)
            if ENDING:
                # a select: beyond the end are rows of others, or none
                current = tl.where(u < beyond, current, 0.0)
                value = tl.where(u < left, value, 0.0)
        following = (current,)
        following += window
        reached = (known[u],)
        reached += reaches
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
        window += (sum_gradient(dy, x, positions, again, piece, top + k, taps, channels, SIZES.ACTIVATION),)
        if positions is not None:
            reaches += (load_reach(positions, piece, top + k, top + k < length, 0),)
    dx = Rows(gradients.x, tl.cast(T, tl.int64) * D, D, 1)
    carried = sums, window, reaches
    if left > 0:
        carried = conv_tile(
            x, dy, positions, dnew_state, dx, again, piece, t, left, kept, carried, taps, channels, SIZES
        )
    for _ in range(full):
        t -= BLOCK_T
        carried = conv_tile(x, dy, positions, None, dx, again, piece, t, None, 0, carried, taps, channels, SIZES)
    sums = carried[0]
    end_piece(dy, x, positions, dnew_state, state, again, gradients, place, piece, kept, sums, taps, channels, SIZES)


launches = _triton_conv_gradient.backward(temporal_conv1d_bwd_rows)

VARIANT = backward_of(
    forward.VARIANT,
    summary="one pass, later gradients and sums in registers, rows loaded ahead",
    config=Config,
    axes={"span": (32, 64, 128, 256, 512), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    launches=launches,
    traffic=_triton_conv_gradient.traffic,
)
