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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment, var-annotated, misc"

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
from griffin_kernels.ops.temporal_conv1d import _triton as forward
from griffin_kernels.ops.temporal_conv1d._triton_jit import load_taps, piece
from griffin_kernels.ops.temporal_conv1d_bwd import _triton
from griffin_kernels.ops.temporal_conv1d_bwd._triton import first_kept_step, store_sums


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t, block_d: steps and channels of a tile."""

    span: int = 128
    block_t: int = 8
    block_d: int = 128
    num_warps: int = 4


@triton.jit
def conv_tile(
    x,
    dy,
    positions,
    leaving,
    dx,
    sums,
    taps,
    at,
    end,
    length,
    kept,
    columns,
    inside,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    LEAVING_STEP,
    LEAVING_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ENDS: tl.constexpr,
):
    """BLOCK_T steps from ``at`` on; pointers at the sequence's first step. Gives the K+1 sums, [block_t, block_d].

    ENDS: the piece ends at ``end`` or the sequence K-1 steps later; its new state holds the steps from ``kept`` on.
    """
    ACC: tl.constexpr = taps[0].dtype
    rows = tl.arange(0, BLOCK_T)
    s = at + rows
    there = (s < end)[:, None] & inside[None, :]
    full = tl.full((BLOCK_T, 1), 1, tl.int1) & inside[None, :]
    value = tl.load(
        x + at * X_STEP + tile_offsets(rows, columns, X_STEP, X_CHANNEL, BLOCK_T, D),
        mask=there if ENDS else full,
        other=0.0,
    ).to(ACC)
    total = tl.zeros((BLOCK_T, BLOCK_D), dtype=ACC)
    if ENDS and leaving is not None and TAPS > 1:
        row = leaving + (s - length + (TAPS - 1))[:, None] * LEAVING_STEP + columns[None, :] * LEAVING_CHANNEL
        total += tl.load(row, mask=there & (s >= kept)[:, None], other=0.0).to(ACC)
    grown = ()
    for k in tl.static_range(TAPS):
        place = dy + at * DY_STEP + tile_offsets(rows + k, columns, DY_STEP, DY_CHANNEL, BLOCK_T + TAPS, D)
        exists = there & (s + k < length)[:, None]
        gradient = tl.load(place, mask=exists if ENDS else full, other=0.0).to(ACC)
        if positions is not None and k > 0:
            reach = tl.load(positions + (s + k) * POSITION_STEP, mask=s + k < length, other=0)
            gradient = tl.where((reach >= k)[:, None], gradient, 0.0)
        total += taps[k][None, :] * gradient
        grown += (sums[k] + gradient * value,)
        if k == 0:
            bias = sums[TAPS] + gradient
    grown += (bias,)
    out = dx + at * D + tile_offsets(rows, columns, D, 1, BLOCK_T, D)
    tl.store(out, total.to(dx.dtype.element_ty), mask=there if ENDS else full)
    return grown


@triton.jit
def state_rows(
    dy,
    positions,
    leaving,
    state,
    dstate,
    taps,
    length,
    kept,
    columns,
    inside,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    LEAVING_STEP,
    LEAVING_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
    POSITION_STEP,
    BLOCK_D: tl.constexpr,
):
    """dstate [K-1,D] of one sequence. Gives what its state adds to the sums of w_1 .. w_{K-1}, each [block_d]."""
    ACC: tl.constexpr = taps[0].dtype
    added = ()
    for _ in tl.static_range(1, TAPS):
        added += (tl.zeros((BLOCK_D,), dtype=ACC),)
    for i in tl.static_range(TAPS - 1):  # step i - (K-1), read by tap k of step i + k - (K-1)
        value = tl.load(state + i * STATE_STEP + columns * STATE_CHANNEL, mask=inside, other=0.0).to(ACC)
        total = tl.zeros((BLOCK_D,), dtype=ACC)
        if leaving is not None:
            row = leaving + (i - length) * LEAVING_STEP + columns * LEAVING_CHANNEL
            entering = inside & (i >= length) & (i - (TAPS - 1) >= kept)
            total += tl.load(row, mask=entering, other=0.0).to(ACC)
        grown = ()
        for k in tl.static_range(1, TAPS):
            sum_k = added[k - 1]
            if k >= TAPS - 1 - i:
                j = i + k - (TAPS - 1)
                counts = j < length
                if positions is not None:
                    counts &= tl.load(positions + j * POSITION_STEP, mask=counts, other=0) >= k
                gradient = tl.load(dy + j * DY_STEP + columns * DY_CHANNEL, mask=inside & counts, other=0.0).to(ACC)
                total += taps[k] * gradient
                sum_k += gradient * value
            grown += (sum_k,)
        added = grown
        tl.store(dstate + i * D + columns, total.to(dstate.dtype.element_ty), mask=inside)
    return added


@triton.jit(do_not_specialize=["T", "pieces", "sequences"])
def temporal_conv1d_bwd_tile(
    dy,
    dnew_state,
    x,
    weight,
    state,
    positions,
    cu_seqlens,
    dx,
    dstate,
    partial,
    T,
    pieces,
    sequences,
    dy_batch,
    leaving_batch,
    x_batch,
    state_batch,
    positions_batch,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    LEAVING_STEP,
    LEAVING_CHANNEL: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    STATE_STEP,
    STATE_CHANNEL: tl.constexpr,
    WEIGHT_TAP: tl.constexpr,
    WEIGHT_CHANNEL: tl.constexpr,
    POSITION_STEP,
    ACC: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dy, x, dx: [B,T,D]; weight [K,D]; dnew_state, state, dstate: [N,K-1,D]; positions [B,T]; partial [pieces,K+1,D].

    Grid: pieces of time * ceil(D / block_d), channels fastest.
    """
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    place = tl.program_id(0) // BLOCKS
    row, batch, first, length, begin, end = piece(place, cu_seqlens, T, pieces, sequences, SPAN)
    x += batch * x_batch + first * far(X_STEP)
    dy += batch * dy_batch + first * far(DY_STEP)
    dx += (batch * T + first) * D
    if dnew_state is not None:
        dnew_state += tl.cast(row, tl.int64) * leaving_batch
    if positions is not None:
        positions += batch * positions_batch + first * far(POSITION_STEP)
    taps = load_taps(weight, columns, inside, TAPS, WEIGHT_TAP, WEIGHT_CHANNEL, ACC)
    kept = first_kept_step(positions, length, TAPS, far(POSITION_STEP))
    sums = ()
    for _ in tl.static_range(TAPS + 1):
        sums += (tl.zeros((BLOCK_T, BLOCK_D), dtype=ACC),)
    steps = tl.cast(tl.maximum(end - begin, 0), tl.int32)
    for ahead in range(0, steps, BLOCK_T):
        at = begin + ahead
        if (at + BLOCK_T <= end) & (at + (BLOCK_T + TAPS - 1) <= length):
            sums = conv_tile(
                x,
                dy,
                positions,
                None,
                dx,
                sums,
                taps,
                at,
                end,
                length,
                kept,
                columns,
                inside,
                D=D,
                TAPS=TAPS,
                X_STEP=far(X_STEP),
                X_CHANNEL=X_CHANNEL,
                DY_STEP=far(DY_STEP),
                DY_CHANNEL=DY_CHANNEL,
                LEAVING_STEP=far(LEAVING_STEP),
                LEAVING_CHANNEL=LEAVING_CHANNEL,
                POSITION_STEP=far(POSITION_STEP),
                BLOCK_T=BLOCK_T,
                BLOCK_D=BLOCK_D,
                ENDS=False,
            )
        else:
            sums = conv_tile(
                x,
                dy,
                positions,
                dnew_state,
                dx,
                sums,
                taps,
                at,
                end,
                length,
                kept,
                columns,
                inside,
                D=D,
                TAPS=TAPS,
                X_STEP=far(X_STEP),
                X_CHANNEL=X_CHANNEL,
                DY_STEP=far(DY_STEP),
                DY_CHANNEL=DY_CHANNEL,
                LEAVING_STEP=far(LEAVING_STEP),
                LEAVING_CHANNEL=LEAVING_CHANNEL,
                POSITION_STEP=far(POSITION_STEP),
                BLOCK_T=BLOCK_T,
                BLOCK_D=BLOCK_D,
                ENDS=True,
            )
    totals = ()
    for k in tl.static_range(TAPS + 1):
        totals += (tl.sum(sums[k], axis=0),)
    if state is not None and TAPS > 1:
        if begin == 0:
            added = state_rows(
                dy,
                positions,
                dnew_state,
                state + tl.cast(row, tl.int64) * state_batch,
                dstate + tl.cast(row, tl.int64) * ((TAPS - 1) * D),
                taps,
                length,
                kept,
                columns,
                inside,
                D=D,
                TAPS=TAPS,
                DY_STEP=far(DY_STEP),
                DY_CHANNEL=DY_CHANNEL,
                LEAVING_STEP=far(LEAVING_STEP),
                LEAVING_CHANNEL=LEAVING_CHANNEL,
                STATE_STEP=far(STATE_STEP),
                STATE_CHANNEL=STATE_CHANNEL,
                POSITION_STEP=far(POSITION_STEP),
                BLOCK_D=BLOCK_D,
            )
            both = (totals[0],)
            for k in tl.static_range(1, TAPS):
                both += (totals[k] + added[k - 1],)
            both += (totals[TAPS],)
            totals = both
    store_sums(totals, partial, place, columns, inside, D, TAPS)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per piece of time and block of channels, then the sum over the pieces."""
    count, args, constexprs, reduce = _triton.arguments(inputs, outputs, config.span)
    dy, x = inputs["dy"], inputs["x"]
    share = config.block_t * config.block_d // (32 * config.num_warps)
    tiles = Launch(
        kernel=temporal_conv1d_bwd_tile,
        grid=(count * triton.cdiv(x.shape[2], config.block_d),),
        args=args,
        constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=scan.load_bits((dy, x), share)),
    )
    return [tiles, reduce]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.span % config.block_t:
        return f"span={config.span} is not a multiple of block_t={config.block_t}"
    return forward.unfit_tile(case, device, config.block_t, config.block_d, config.num_warps)


VARIANT = Variant(
    op="temporal_conv1d_bwd",
    name="triton.tile",
    summary="tiles of steps and channels, one shifted load of dy per tap",
    config=Config,
    axes={"span": (64, 128, 256, 512), "block_t": (8, 16), "block_d": (64, 128), "num_warps": (4, 8)},
    reject=reject,
    rank=lambda case, device: 25,
    launches=launches,
    traffic=lambda case, config: _triton.traffic(case, config.span),
)
