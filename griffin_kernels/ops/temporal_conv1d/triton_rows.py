"""One pass over a piece of time, the K-1 inputs before a step in registers, ``block_t`` rows loaded ahead.

    y_t = bias + sum_k weight[K-1-k] x_{t-k}

A program owns ``block_d`` channels of ``span`` steps of one batch entry or packed sequence. It issues the loads of
block_t rows before it uses the first, widens each row once and keeps the last K-1 widened; only what precedes the piece
is read a second time, K-1 rows that a neighbour reads too. Only the last tile is masked in time. The program that has a
sequence's last step writes its new state.

Bytes per element: the ideal two data elements (4 in bf16, 8 in fp32), from L2 2 (1 + (K-1) / span) of x. Bound by
memory bandwidth: in bf16 at K = 4 the main loop compiled for sm_90 has 6.4 (8 channels a thread) to 7.7 instructions
per element, with positions 10.7 to 14.2, of the 35 that an H100 issues in the time of 4 bytes.
Source: the register window of a direct FIR filter; Dao-AILab/causal-conv1d has the same in CUDA for K = 2 .. 4.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton import host as scan
from griffin_kernels.ops._triton.scan import load_flags, load_rows, store_row
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.temporal_conv1d import _triton
from griffin_kernels.ops.temporal_conv1d._triton_jit import input_row, load_taps, piece, store_new_state


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    span: int = 64
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def conv_tile(
    x,
    positions,
    y,
    before,
    taps,
    bias,
    columns,
    inside,
    left,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_T steps, fewer in the tail, after the K-1 inputs ``before``, latest first. Gives those of the next tile."""
    MASKED: tl.constexpr = D % BLOCK_D != 0
    rows = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    reach = load_flags(positions, left, POSITION_STEP, 0, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        window = (rows[u].to(bias.dtype),)
        for k in tl.static_range(TAPS - 1):
            window += (before[k],)
        total = bias + taps[0] * window[0]
        for k in tl.static_range(1, TAPS):
            earlier = window[k]
            if positions is not None:
                earlier = tl.where(reach[u] >= k, earlier, 0.0)
            total += taps[k] * earlier
        store_row(y + u * D + columns, total, inside, u, left, MASKED, TAIL)
        before = ()
        for k in tl.static_range(TAPS - 1):
            before += (window[k],)
    return before


@triton.jit(do_not_specialize=["T", "pieces", "sequences"])
def temporal_conv1d_rows(
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
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, y: [B,T,D]; weight [K,D]; bias [D]; state, new_state: [N,K-1,D]; positions [B,T].

    Grid: pieces of time * ceil(D / block_d), channels fastest.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    row, batch, first, length, begin, end = piece(tl.program_id(0) // BLOCKS, cu_seqlens, T, pieces, sequences, SPAN)
    x += batch * x_batch + first * far(X_STEP)
    if state is not None:
        state += tl.cast(row, tl.int64) * state_batch
    if positions is not None:
        positions += batch * positions_batch + first * far(POSITION_STEP)
    taps = load_taps(weight, columns, inside, TAPS, WEIGHT_TAP, WEIGHT_CHANNEL, ACC)
    constant = tl.load(bias + columns * BIAS_CHANNEL, mask=inside, other=0.0).to(ACC)
    before = ()
    for k in tl.static_range(1, TAPS):
        earlier = input_row(
            x,
            state,
            begin - k,
            columns,
            inside & (begin < end),
            TAPS,
            far(X_STEP),
            X_CHANNEL,
            far(STATE_STEP),
            STATE_CHANNEL,
        )
        before += (earlier.to(ACC),)
    here = x + begin * far(X_STEP)
    out = y + (batch * T + first + begin) * D
    own = positions
    if positions is not None:
        own = positions + begin * far(POSITION_STEP)
    steps = tl.cast(end - begin, tl.int32)
    full = tl.maximum(steps, 0) // BLOCK_T
    for _ in range(full):
        before = conv_tile(
            here,
            own,
            out,
            before,
            taps,
            constant,
            columns,
            inside,
            BLOCK_T,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=False,
        )
        here += BLOCK_T * far(X_STEP)
        out += BLOCK_T * D
        if positions is not None:
            own += BLOCK_T * far(POSITION_STEP)
    left = steps - full * BLOCK_T
    if left > 0:
        conv_tile(
            here,
            own,
            out,
            before,
            taps,
            constant,
            columns,
            inside,
            left,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=True,
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
    """One program per piece of time and block of channels."""
    count, args, constexprs = _triton.arguments(inputs, outputs, config.span)
    x = inputs["x"]
    return [
        Launch(
            kernel=temporal_conv1d_rows,
            grid=(count * triton.cdiv(x.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=scan.load_bits((x,), config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.span % config.block_t:
        return f"span={config.span} is not a multiple of block_t={config.block_t}"
    return _triton.unfit(case, device, config.block_d, config.num_warps)


VARIANT = Variant(
    op="temporal_conv1d",
    name="triton.rows",
    summary="one pass, earlier inputs in registers, rows loaded ahead",
    config=Config,
    axes={"span": (32, 64, 128, 256), "block_t": (8, 16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=reject,
    rank=lambda case, device: 30,
    launches=launches,
)
