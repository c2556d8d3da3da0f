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
from griffin_kernels.ops.temporal_conv1d import _triton as forward
from griffin_kernels.ops.temporal_conv1d._triton_jit import load_taps, piece
from griffin_kernels.ops.temporal_conv1d_bwd import _triton
from griffin_kernels.ops.temporal_conv1d_bwd._triton import first_kept_step, store_sums


@dataclass(frozen=True)
class Config:
    """span: steps per program. block_t: rows loaded ahead. block_d: channels per program."""

    span: int = 128
    block_t: int = 8
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def step(g, own, value, through, reach, window, reaches, sums, taps, positions, TAPS: tl.constexpr):
    """One input: value = x_s, g = dy_s, window = dy_{s+1} .. dy_{s+K-1} with the positions ``reaches``.

    own: what of g counts for the bias. through: x_s's gradient from elsewhere. Gives dx_s, then window, reaches and
    sums for the step before.
    """
    later = (g,)
    known = (reach,)
    for k in tl.static_range(TAPS - 1):
        later += (window[k],)
        if positions is not None:
            known += (reaches[k],)
    total = through + taps[0] * g
    grown = (sums[0] + g * value,)
    for k in tl.static_range(1, TAPS):
        gradient = later[k]
        if positions is not None:
            gradient = tl.where(known[k] >= k, gradient, 0.0)
        total += taps[k] * gradient
        grown += (sums[k] + gradient * value,)
    grown += (sums[TAPS] + own,)
    shifted = ()
    moved = ()
    for k in tl.static_range(TAPS - 1):
        shifted += (later[k],)
        if positions is not None:
            moved += (known[k],)
    return total, shifted, moved, grown


@triton.jit
def conv_tile(
    x,
    dy,
    positions,
    leaving,
    dx,
    window,
    reaches,
    sums,
    taps,
    columns,
    inside,
    left,
    ahead,
    kept,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    DY_STEP,
    DY_CHANNEL: tl.constexpr,
    LEAVING_STEP,
    LEAVING_CHANNEL: tl.constexpr,
    POSITION_STEP,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ENDING: tl.constexpr,
):
    """ROWS steps, the last first; pointers are at the lowest. Gives window, reaches and sums for the tile below.

    ENDING: ``left`` of the steps are the piece's, ``ahead`` the sequence's; its new state holds those from ``kept`` on.
    """
    MASKED: tl.constexpr = D % BLOCK_D != 0
    ACC: tl.constexpr = taps[0].dtype
    gradients = load_rows(dy + columns * DY_CHANNEL, inside, ahead, DY_STEP, 0.0, ROWS, MASKED, ENDING)
    values = load_rows(x + columns * X_CHANNEL, inside, left, X_STEP, 0.0, ROWS, MASKED, ENDING)
    known = load_flags(positions, ahead, POSITION_STEP, 0, ROWS, ENDING)
    for u in tl.static_range(ROWS - 1, -1, -1):
        through = 0.0
        if ENDING and leaving is not None and TAPS > 1:
            row = leaving + (u - ahead + TAPS - 1) * LEAVING_STEP + columns * LEAVING_CHANNEL
            through = tl.load(row, mask=inside & (u < left) & (u >= kept), other=0.0).to(ACC)
        g = gradients[u].to(ACC)
        total, window, reaches, sums = step(
            g,
            tl.where(u < left, g, 0.0) if ENDING else g,
            values[u].to(ACC),
            through,
            known[u],
            window,
            reaches,
            sums,
            taps,
            positions,
            TAPS,
        )
        store_row(dx + u * D + columns, total, inside, u, left, MASKED, ENDING)
    return window, reaches, sums


@triton.jit(do_not_specialize=["T", "pieces", "sequences"])
def temporal_conv1d_bwd_rows(
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
    # the masked tile holds all steps of the piece that the new state holds too
    steps = tl.cast(tl.maximum(end - begin, 0), tl.int32)
    full = steps // BLOCK_T
    if end > length - (TAPS - 1):
        full = tl.maximum(steps - (TAPS - 1), 0) // BLOCK_T
    left = steps - full * BLOCK_T
    at = begin + full * BLOCK_T
    top = end
    if left > 0:
        top = at + (BLOCK_T + TAPS - 1)
    sums = (tl.zeros((BLOCK_D,), dtype=ACC),)
    window = ()
    reaches = ()
    for k in tl.static_range(TAPS):
        sums += (tl.zeros((BLOCK_D,), dtype=ACC),)
        if k > 0:
            t = top - 1 + k
            later = tl.load(dy + t * far(DY_STEP) + columns * DY_CHANNEL, mask=inside & (t < length), other=0.0)
            window += (later.to(ACC),)
            if positions is not None:
                reaches += (tl.load(positions + t * far(POSITION_STEP), mask=t < length, other=0),)
    if left > 0:
        own = positions
        if positions is not None:
            own = positions + at * far(POSITION_STEP)
        window, reaches, sums = conv_tile(
            x + at * far(X_STEP),
            dy + at * far(DY_STEP),
            own,
            dnew_state,
            dx + at * D,
            window,
            reaches,
            sums,
            taps,
            columns,
            inside,
            left,
            tl.cast(length - at, tl.int32),
            tl.cast(kept - at, tl.int32),
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            DY_STEP=far(DY_STEP),
            DY_CHANNEL=DY_CHANNEL,
            LEAVING_STEP=far(LEAVING_STEP),
            LEAVING_CHANNEL=LEAVING_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            ROWS=BLOCK_T + TAPS - 1,
            BLOCK_D=BLOCK_D,
            ENDING=True,
        )
    for _ in range(full):
        at -= BLOCK_T
        own = positions
        if positions is not None:
            own = positions + at * far(POSITION_STEP)
        window, reaches, sums = conv_tile(
            x + at * far(X_STEP),
            dy + at * far(DY_STEP),
            own,
            None,
            dx + at * D,
            window,
            reaches,
            sums,
            taps,
            columns,
            inside,
            BLOCK_T,
            0,
            0,
            D=D,
            TAPS=TAPS,
            X_STEP=far(X_STEP),
            X_CHANNEL=X_CHANNEL,
            DY_STEP=far(DY_STEP),
            DY_CHANNEL=DY_CHANNEL,
            LEAVING_STEP=far(LEAVING_STEP),
            LEAVING_CHANNEL=LEAVING_CHANNEL,
            POSITION_STEP=far(POSITION_STEP),
            ROWS=BLOCK_T,
            BLOCK_D=BLOCK_D,
            ENDING=False,
        )
    if state is not None and TAPS > 1:
        if begin == 0:
            state += tl.cast(row, tl.int64) * state_batch
            dstate += tl.cast(row, tl.int64) * ((TAPS - 1) * D)
            # row i of the state is step i - (K-1)
            for i in tl.static_range(TAPS - 2, -1, -1):
                through = 0.0
                if dnew_state is not None:
                    before = dnew_state + (i - length) * far(LEAVING_STEP) + columns * LEAVING_CHANNEL
                    entering = inside & (i >= length) & (i - (TAPS - 1) >= kept)
                    through = tl.load(before, mask=entering, other=0.0).to(ACC)
                value = tl.load(state + i * far(STATE_STEP) + columns * STATE_CHANNEL, mask=inside, other=0.0)
                nothing, unknown = tl.zeros((BLOCK_D,), dtype=ACC), tl.cast(0, tl.int64)
                total, window, reaches, sums = step(
                    nothing, nothing, value.to(ACC), through, unknown, window, reaches, sums, taps, positions, TAPS
                )
                tl.store(dstate + i * D + columns, total.to(dstate.dtype.element_ty), mask=inside)
    store_sums(sums, partial, place, columns, inside, D, TAPS)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per piece of time and block of channels, then the sum over the pieces."""
    count, args, constexprs, reduce = _triton.arguments(inputs, outputs, config.span)
    dy, x = inputs["dy"], inputs["x"]
    rows = Launch(
        kernel=temporal_conv1d_bwd_rows,
        grid=(count * triton.cdiv(x.shape[2], config.block_d),),
        args=args,
        constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
        num_warps=config.num_warps,
        tile=config.block_t * config.block_d,
        claims=Claims(load_bits=scan.load_bits((dy, x), config.block_d // (32 * config.num_warps))),
    )
    return [rows, reduce]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.span % config.block_t:
        return f"span={config.span} is not a multiple of block_t={config.block_t}"
    return forward.unfit(case, device, config.block_d, config.num_warps)


VARIANT = Variant(
    op="temporal_conv1d_bwd",
    name="triton.rows",
    summary="one pass, later gradients and sums in registers, rows loaded ahead",
    config=Config,
    axes={"span": (32, 64, 128, 256, 512), "block_t": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (1, 2)},
    reject=reject,
    rank=lambda case, device: 30,
    launches=launches,
    traffic=lambda case, config: _triton.traffic(case, config.span),
)
