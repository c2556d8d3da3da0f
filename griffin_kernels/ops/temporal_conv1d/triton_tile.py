"""A tile of steps and channels per program, loaded once per tap at K shifted places.

    y_t = bias + sum_k weight[K-1-k] x_{t-k}

No step waits for another, and all threads of a tile may share few channels: many more programs than triton.rows, for
short or narrow problems. The first tap's load brings a tile from memory; the K-1 shifted ones ask for the same rows
again and find them in L1 or L2, which is what this form spends instead of registers. Tiles that reach past either end
of a sequence are masked in time, others are not; a state is read by the tiles at a sequence's start.

Bytes per element: the ideal two data elements from memory (4 in bf16, 8 in fp32), K + 1 of them from L1. Bound by
memory bandwidth, or by the rate of load instructions where K is large.
Source: flash-linear-attention's Triton convolution has tiles with shifted loads too.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.scan import tile_offsets
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.temporal_conv1d import _triton
from griffin_kernels.ops.temporal_conv1d._triton_jit import piece, store_new_state


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of a tile."""

    block_t: int = 16
    block_d: int = 128
    num_warps: int = 2


@triton.jit
def conv_tile(
    x,
    state,
    positions,
    y,
    weight,
    bias,
    begin,
    length,
    columns,
    inside,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    WEIGHT_CHANNEL: tl.constexpr,
    BIAS_CHANNEL: tl.constexpr,
    POSITION_STEP,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ENDS: tl.constexpr,
):
    """BLOCK_T steps from ``begin`` on; pointers at the sequence's first step. ENDS: some taps or steps are outside."""
    rows = tl.arange(0, BLOCK_T)
    t = begin + rows
    there = (t < length)[:, None] & inside[None, :]
    here = x + begin * X_STEP
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=ACC)
    total += tl.load(bias + columns * BIAS_CHANNEL, mask=inside, other=0.0).to(ACC)[None, :]
    if positions is not None:
        reach = tl.load(positions + t * POSITION_STEP, mask=t < length, other=0)
    for k in tl.static_range(TAPS):
        offsets = tile_offsets(rows - k, columns, X_STEP, X_CHANNEL, BLOCK_T + TAPS, D)
        if ENDS:
            value = tl.load(here + offsets, mask=there & (t >= k)[:, None], other=0.0)
        elif D % BLOCK_D != 0:
            value = tl.load(here + offsets, mask=inside[None, :], other=0.0)
        else:
            value = tl.load(here + offsets)
        if ENDS and state is not None and k > 0:
            place = state + (t + (TAPS - 1 - k))[:, None] * STATE_STEP + columns[None, :] * STATE_CHANNEL
            value = tl.where((t < k)[:, None], tl.load(place, mask=there & (t < k)[:, None], other=0.0), value)
        value = value.to(ACC)
        if positions is not None and k > 0:
            value = tl.where((reach >= k)[:, None], value, 0.0)
        tap = tl.load(weight + (TAPS - 1 - k) * WEIGHT_TAP + columns * WEIGHT_CHANNEL, mask=inside, other=0.0)
        total += tap.to(ACC)[None, :] * value
    out = y + begin * D + tile_offsets(rows, columns, D, 1, BLOCK_T, D)
    if ENDS:
        tl.store(out, total.to(y.dtype.element_ty), mask=there)
    elif D % BLOCK_D != 0:
        tl.store(out, total.to(y.dtype.element_ty), mask=inside[None, :])
    else:
        tl.store(out, total.to(y.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "pieces", "sequences"])
def temporal_conv1d_tile(
    x,
    weight,
    bias,
    state,
    positions,
    cu_seqlens,
    y,
    new_state,
    T,
    pieces,
    sequences,
    x_batch,
    state_batch,
    positions_batch,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    WEIGHT_CHANNEL: tl.constexpr,
    BIAS_CHANNEL: tl.constexpr,
    POSITION_STEP,
    ACC: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, y: [B,T,D]; weight [K,D]; bias [D]; state, new_state: [N,K-1,D]; positions [B,T].

    Grid: pieces of SPAN steps * ceil(D / block_d), channels fastest.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    row, batch, first, length, begin, end = piece(tl.program_id(0) // BLOCKS, cu_seqlens, T, pieces, sequences, SPAN)
    x += batch * x_batch + first * far(X_STEP)
    y += (batch * T + first) * D
    if state is not None:
        state += tl.cast(row, tl.int64) * state_batch
    if positions is not None:
        positions += batch * positions_batch + first * far(POSITION_STEP)
    if (begin >= TAPS - 1) & (begin + SPAN <= length):
        conv_tile(
            x,
            state,
            positions,
            y,
            weight,
            bias,
            begin,
            length,
            columns,
            inside,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            STATE_STEP=far(STATE_STEP),
            STATE_CHANNEL=STATE_CHANNEL,
            WEIGHT_TAP=WEIGHT_TAP,
            WEIGHT_CHANNEL=WEIGHT_CHANNEL,
            BIAS_CHANNEL=BIAS_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            ACC=ACC,
            BLOCK_T=SPAN,
            BLOCK_D=BLOCK_D,
            ENDS=False,
        )
    elif begin < length:
        conv_tile(
            x,
            state,
            positions,
            y,
            weight,
            bias,
            begin,
            length,
            columns,
            inside,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            STATE_STEP=far(STATE_STEP),
            STATE_CHANNEL=STATE_CHANNEL,
            WEIGHT_TAP=WEIGHT_TAP,
            WEIGHT_CHANNEL=WEIGHT_CHANNEL,
            BIAS_CHANNEL=BIAS_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            ACC=ACC,
            BLOCK_T=SPAN,
            BLOCK_D=BLOCK_D,
            ENDS=True,
        )
    if (end == length) & ((begin < length) | (begin == 0)):
        store_new_state(
            x,
            state,
            positions,
            new_state + tl.cast(row, tl.int64) * ((TAPS - 1) * D),
            length,
            columns,
            inside,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            STATE_STEP=far(STATE_STEP),
            STATE_CHANNEL=STATE_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
        )


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per tile."""
    count, args, constexprs = _triton.arguments(inputs, outputs, config.block_t)
    x = inputs["x"]
    return [
        Launch(
            kernel=temporal_conv1d_tile,
            grid=(count * triton.cdiv(x.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=scan.load_bits((x,), config.block_t * config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit_tile(case, device, config.block_t, config.block_d, config.num_warps)


VARIANT = Variant(
    op="temporal_conv1d",
    name="triton.tile",
    summary="tiles of steps and channels, one shifted load per tap",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (64, 128), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=lambda case, device: 25,
    launches=launches,
)
