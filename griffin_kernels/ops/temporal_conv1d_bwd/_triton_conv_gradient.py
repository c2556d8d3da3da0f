"""What the Triton gradients of the convolution share: the state, arguments, sums of the weights' gradients over pieces.

Every piece of time leaves K+1 rows of sums in the accumulator's dtype, those of w_0 .. w_{K-1} (weight's rows from the
last to the first) and of the bias. A second launch adds them up in the order of the pieces: no atomics, so that equal
calls give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.activations import slope
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.tensors import dense, load_state, own_channels, rows, store_row
from griffin_kernels.ops.temporal_conv1d._triton_conv import (
    ConvSizes,
    bias_of,
    input_row,
    launch,
    load_reach,
    load_row,
    pieces_of,
)
from griffin_kernels.ops.temporal_conv1d_bwd.op import Call

REDUCE_ROWS = 32
REDUCE_D = 64


class ForwardAgain(NamedTuple):
    """What a sum of the convolution is made of besides x and taps: rows of the state or None, bias [block_d]."""

    state: Any
    bias: Any


class Gradients(NamedTuple):
    """Outputs: dx [B,T,D], dstate [N,K-1,D] or None, and the sums of the pieces [pieces,K+1,D]."""

    x: Any
    state: Any
    partial: Any


@bundling
def forward_again(state, bias, channels, SIZES: tl.constexpr):
    """None without an activation, whose slopes alone want it."""
    if SIZES.ACTIVATION > 0:
        constant = load_state(bias, 0, channels, SIZES.ACC)
    return ForwardAgain(state, constant) if SIZES.ACTIVATION > 0 else None


@triton.jit
def of_sum(gradient, inputs, reach, taps, bias, ACTIVATION: tl.constexpr):
    """``gradient`` of an activation's value as that of its sum. inputs: of its step, of the one before, ..."""
    total = bias
    for k in tl.static_range(len(taps)):
        value = inputs[k].to(taps[0].dtype)
        if reach is not None and k > 0:
            value = tl.where(reach >= k, value, 0.0)
        total += taps[k] * value
    return gradient * slope(total, ACTIVATION)


@triton.jit
def sum_gradient(dy, x, positions, again, piece, t, taps, channels, ACTIVATION: tl.constexpr):
    """What reaches the sum of step t >= 0 of a sequence as [block_d], zeros beyond its end."""
    ACC: tl.constexpr = taps[0].dtype
    there = t < piece.length
    gradient = load_row(dy, piece.batch, piece.first + t, channels, there).to(ACC)
    if again is not None:
        inputs = ()
        for k in tl.static_range(len(taps)):
            inputs += (input_row(x, again.state, piece, t - k, channels, len(taps), there),)
        reach = len(taps)
        if positions is not None:
            reach = load_reach(positions, piece, t, there, 0)
        # a select: beyond the end are rows of others, or none
        gradient = tl.where(there, of_sum(gradient, inputs, reach, taps, again.bias, ACTIVATION), 0.0)
    return gradient


@triton.jit
def first_kept_step(positions, piece, TAPS: tl.constexpr):
    """The first step of a sequence, below 0 in its state, that its new state holds."""
    first = piece.length - (TAPS - 1)
    if positions is not None:
        last = load_reach(positions, piece, piece.length - 1, piece.length > 0, TAPS)
        first = tl.maximum(first, piece.length - 1 - last)
    return first


@triton.jit
def state_rows(dy, x, positions, leaving, state, dstate, again, piece, kept, sums, taps, channels, SIZES: tl.constexpr):
    """dstate [K-1,D] of one sequence. Gives the K+1 sums [block_d], to which its state has added."""
    ACC: tl.constexpr = taps[0].dtype
    TAPS: tl.constexpr = len(taps)
    D: tl.constexpr = SIZES.D
    early = ()
    if again is not None:
        for j in tl.static_range(TAPS - 1):
            early += (sum_gradient(dy, x, positions, again, piece, j, taps, channels, SIZES.ACTIVATION),)
    for i in tl.static_range(TAPS - 1):  # step i - (K-1), read by tap k of step i + k - (K-1)
        value = load_row(state, piece.row, i, channels, True).to(ACC)
        total = tl.zeros(channels.columns.shape, dtype=ACC)
        if leaving is not None:
            entering = (i >= piece.length) & (i - (TAPS - 1) >= kept)
            total += load_row(leaving, piece.row, i - piece.length, channels, entering).to(ACC)
        grown = (sums[0],)
        for k in tl.static_range(1, TAPS):
            sum_k = sums[k]
            if k >= TAPS - 1 - i:
                j = i + k - (TAPS - 1)
                counts = j < piece.length
                if positions is not None:
                    counts &= load_reach(positions, piece, j, counts, 0) >= k
                if again is not None:
                    gradient = tl.where(counts, early[i + k - (TAPS - 1)], 0.0)
                else:
                    gradient = load_row(dy, piece.batch, piece.first + j, channels, counts).to(ACC)
                total += taps[k] * gradient
                sum_k += gradient * tl.where(counts, value, 0.0)  # of a short sequence some rows reach no step
            grown += (sum_k,)
        grown += (sums[TAPS],)
        sums = grown
        store_row(dense(dstate, piece.row * (TAPS - 1), D, 1), i, total, channels, 0, False)
    return sums


@triton.jit
def end_piece(
    dy, x, positions, leaving, state, again, gradients, place, piece, kept, sums, taps, channels, SIZES: tl.constexpr
):
    """The state's rows, by the piece that begins a sequence, and the K+1 sums [block_d] of piece ``place``, stored."""
    if state is not None and len(taps) > 1:
        if piece.begin == 0:
            dstate = gradients.state
            sums = state_rows(dy, x, positions, leaving, state, dstate, again, piece, kept, sums, taps, channels, SIZES)
    D: tl.constexpr = SIZES.D
    for k in tl.static_range(len(sums)):
        store_row(dense(gradients.partial, tl.cast(place, tl.int64) * len(sums), D, 1), k, sums[k], channels, 0, False)


@triton.jit(do_not_specialize=["pieces"])
def temporal_conv1d_bwd_reduce(partial, dweight, dbias, pieces, SIZES: tl.constexpr):
    """partial [pieces,K+1,D] -> dweight [K,D], dbias [D] or None. Grid: (K+1) * ceil(D / block_d), K * without a bias.

    BLOCK_T: rows that are added at a time.
    """
    D: tl.constexpr = SIZES.D
    TAPS: tl.constexpr = SIZES.TAPS
    ROWS: tl.constexpr = SIZES.BLOCK_T
    BLOCK_D: tl.constexpr = SIZES.BLOCK_D
    k, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    columns, inside = channels.columns, channels.inside
    rows = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), dtype=SIZES.ACC)
    for first in range(0, pieces, ROWS):
        place = (first + rows)[:, None]
        row = partial + place.to(tl.int64) * ((TAPS + 1) * D) + k * D + columns[None, :]
        total += tl.load(row, mask=(place < pieces) & inside[None, :], other=0.0)
    value = tl.sum(total, axis=0)
    if k < TAPS:
        tl.store(dweight + (TAPS - 1 - k) * D + columns, value.to(dweight.dtype.element_ty), mask=inside)
    elif dbias is not None:
        tl.store(dbias + columns, value.to(dbias.dtype.element_ty), mask=inside)


def backward(kernel: Any, tile: bool = False) -> Callable[[Call, dict[str, Any], Any], list[Launch]]:
    """``launches`` of a kernel and of the sum over its pieces, which allocate all outputs. tile: as in ``launch``."""

    def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
        x, dy, state = call.x, call.dy, call.state
        count, _ = pieces_of(call, config.span)
        taps, width = call.weight.shape
        dx = host.empty(outputs, "dx", x, *x.shape, dtype=x.dtype)
        outputs["dstate"] = None if state is None else host.empty(outputs, "dstate", x, *state.shape, dtype=x.dtype)
        partial = torch.empty((count, taps + 1, width), dtype=accumulator(x.dtype), device=x.device)
        gradients = Gradients(dx, outputs["dstate"], partial)
        own = {"dy": rows(dy), "dnew_state": rows(call.dnew_state), "gradients": gradients}
        own["bias"] = bias_of(call) if call.activation else None
        pieces = launch(kernel, call, config, tile, (dy, x), **own)
        bias = call.bias
        outputs["dbias"] = None if bias is None else host.empty(outputs, "dbias", x, width, dtype=bias.dtype)
        wanted = taps if bias is None else taps + 1
        reduce = Launch(
            kernel=temporal_conv1d_bwd_reduce,
            grid=(wanted * triton.cdiv(width, REDUCE_D),),
            args={
                "partial": partial,
                "dweight": host.empty(outputs, "dweight", x, taps, width, dtype=call.weight.dtype),
                "dbias": outputs["dbias"],
                "pieces": count,
            },
            constexprs={"SIZES": ConvSizes(width, taps, host.wide(x.dtype), 0, REDUCE_ROWS, REDUCE_D)},
            num_warps=4,
            tile=REDUCE_ROWS * REDUCE_D,
        )
        return [pieces, reduce]

    return launches


def traffic(case: Case, config: Any) -> int:
    """Bytes moved: dy and x read, dx written, K+1 sums per piece written and read."""
    pieces: int = case["B"] * -(-case["T"] // config.span) + (case["N"] if "packed" in case.flags else 0)
    sums = 2 * pieces * (case["K"] + 1) * case["D"] * accumulator(case.torch_dtype).itemsize
    return 3 * case["B"] * case["T"] * case["D"] * case.bytes_per_element() + sums
