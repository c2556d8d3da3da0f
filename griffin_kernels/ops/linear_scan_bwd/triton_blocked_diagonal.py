"""The backward scan as a product with its transfer matrix, cut into blocks along the diagonal.

    g = L dh + reach c_in,   L[t, s] = product of m a over steps s .. t-1 as visited (1 on the diagonal)
    dx_t = g_t,   da_t = m_t g_t h_{t-1},   c_out = m a g of the block's last visited step,   dh0 = the last c_out

The mirror of linear_scan/triton.blocked_diagonal: steps are visited from the last to the first, diagonal blocks of
``block`` x ``block`` are applied densely, row by row in registers, and what lies below them acts through c, which one
block hands to the next. Rows are loaded ahead; only the last tile, which holds the first step, is masked.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). About ``block`` + 3 operations per element:
bound by memory bandwidth up to a block of 8, by instruction issue beyond.
Source: as linear_scan/triton.blocked_diagonal, by the chain rule.
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
from griffin_kernels.ops._triton import host as forward
from griffin_kernels.ops._triton.scan import (
    AGAIN,
    beyond_one,
    grow,
    load_flags,
    load_rows,
    load_state,
    span,
    store_row,
)
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.linear_scan_bwd import _triton
from griffin_kernels.ops.linear_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block: rows of a diagonal block. block_t: rows loaded ahead, a multiple of it. block_d: channels per program."""

    block: int = 8
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit
def scan_blocks(
    dh,
    a,
    h,
    reset,
    dx,
    da,
    carry,
    most,
    before_first,
    columns,
    inside,
    left,
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    OUT_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_T steps of BLOCK_D channels, fewer in the tail. Pointers are at the tile's first step.

    The tail ends with the forward pass's first step, before which the state is before_first [block_d]. Gives the carry
    and the largest |a| so far, ``most``. A block with a reset goes row by row, as in the forward pass.
    """
    MASKED: tl.constexpr = D % BLOCK_D != 0
    ACC: tl.constexpr = carry.dtype
    gradients = load_rows(dh + columns * DH_CHANNEL, inside, left, DH_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    gates = load_rows(a + columns * A_CHANNEL, inside, left, A_STEP, 1.0, BLOCK_T, MASKED, TAIL)
    states = load_rows(h + H_STEP + columns * H_CHANNEL, inside, left - 1, H_STEP, 0.0, BLOCK_T, MASKED, TAIL)
    resets = load_flags(reset, left, RESET_STEP, 0, BLOCK_T, TAIL)
    dx_out = dx + columns
    da_out = da + columns
    for first in tl.static_range(0, BLOCK_T, BLOCK):
        stopped = 0
        if reset is not None:
            for t in tl.static_range(BLOCK):
                stopped |= (resets[first + t] != 0).to(tl.int32)
        if stopped != 0:
            for t in tl.static_range(BLOCK):
                stop = resets[first + t] != 0
                gate = gates[first + t].to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                before = states[first + t].to(ACC)
                if TAIL:
                    before = tl.where(first + t == left - 1, before_first, before)
                g = gradients[first + t].to(ACC) + carry
                before = tl.where(stop, 0.0, before)
                store_row(dx_out + (first + t) * OUT_STEP, g, inside, first + t, left, MASKED, TAIL)
                store_row(da_out + (first + t) * OUT_STEP, g * before, inside, first + t, left, MASKED, TAIL)
                carry = tl.where(stop, 0.0, gate * g)
        else:
            weights = ()  # row t of the block: L[t, 0..t]
            values = ()  # dh of the block's rows so far
            reach = tl.full((BLOCK_D,), 1.0, dtype=ACC)
            handed = carry
            for t in tl.static_range(BLOCK):
                gate = gates[first + t].to(ACC)
                most = tl.maximum(most, tl.abs(gate))
                before = states[first + t].to(ACC)
                if TAIL:
                    before = tl.where(first + t == left - 1, before_first, before)
                g = gradients[first + t].to(ACC)
                values += (g,)
                for s in tl.static_range(t):
                    g += weights[s] * values[s]
                g = reach * carry + g
                store_row(dx_out + (first + t) * OUT_STEP, g, inside, first + t, left, MASKED, TAIL)
                store_row(da_out + (first + t) * OUT_STEP, g * before, inside, first + t, left, MASKED, TAIL)
                handed = gate * g
                # L[t+1, t] = a_t, and everything before is multiplied by it too
                weights = grow(weights, gate, t)
                weights += (gate,)
                reach *= gate
            carry = handed
    return carry, most


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_blocked_diagonal(
    dh,
    dh_last,
    a,
    h,
    h0,
    reset,
    cu_seqlens,
    dx,
    da,
    dh0,
    T,
    dh_batch,
    a_batch,
    h_batch,
    reset_batch,
    dh_last_row,
    h0_row,
    D: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dh, a, h, dx, da: [B,T,D]; dh_last, h0, dh0: [N,D]; reset: [B,T] bytes. Grid: N * ceil(D / block_d)."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    dh += batch * dh_batch + first * (SIGN * far(DH_STEP))
    a += batch * a_batch + first * (SIGN * far(A_STEP))
    h += batch * h_batch + first * (SIGN * far(H_STEP))
    dx += (batch * T + first) * D
    da += (batch * T + first) * D
    carry = load_state(dh_last, row, dh_last_row, columns, inside, DH_LAST_CHANNEL, ACC, BLOCK_D)  # [block_d]
    before_first = load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_D)  # [block_d]
    most = tl.zeros((BLOCK_D,), dtype=ACC)  # the largest |a|
    full = tl.maximum(steps - 1, 0) // BLOCK_T
    for _ in range(full):
        carry, most = scan_blocks(
            dh,
            a,
            h,
            reset,
            dx,
            da,
            carry,
            most,
            before_first,
            columns,
            inside,
            BLOCK_T,
            D=D,
            DH_STEP=far(DH_STEP),
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=far(A_STEP),
            A_CHANNEL=A_CHANNEL,
            H_STEP=far(H_STEP),
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=far(RESET_STEP),
            OUT_STEP=SIGN * D,
            BLOCK=BLOCK,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=False,
        )
        dh += BLOCK_T * far(DH_STEP)
        a += BLOCK_T * far(A_STEP)
        h += BLOCK_T * far(H_STEP)
        dx += BLOCK_T * SIGN * D
        da += BLOCK_T * SIGN * D
        if reset is not None:
            reset += BLOCK_T * far(RESET_STEP)
    left = steps - full * BLOCK_T
    if left > 0:
        carry, most = scan_blocks(
            dh,
            a,
            h,
            reset,
            dx,
            da,
            carry,
            most,
            before_first,
            columns,
            inside,
            left,
            D=D,
            DH_STEP=far(DH_STEP),
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=far(A_STEP),
            A_CHANNEL=A_CHANNEL,
            H_STEP=far(H_STEP),
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=far(RESET_STEP),
            OUT_STEP=SIGN * D,
            BLOCK=BLOCK,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            TAIL=True,
        )
    if dh0 is not None:
        tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)
    if tl.min((most <= 1.0).to(tl.int32), axis=0) == 0:  # NaN too, where a maximum keeps it
        # products may be of no use: those channels again, whose rows other threads have written
        tl.debug_barrier()
        back = tl.cast(full, tl.int64) * BLOCK_T
        a -= back * far(A_STEP)
        wild = beyond_one(a, columns, inside, steps, far(A_STEP), A_CHANNEL, ACC, BLOCK_D)
        if reset is not None:
            reset -= back * far(RESET_STEP)
        carry = scan_rows(
            dh - back * far(DH_STEP),
            a,
            h - back * far(H_STEP),
            reset,
            None,
            None,
            dx - back * SIGN * D,
            da - back * SIGN * D,
            None,
            0,
            None,
            0,
            None,
            load_state(dh_last, row, dh_last_row, columns, wild, DH_LAST_CHANNEL, ACC, BLOCK_D),
            before_first,
            columns,
            wild,
            steps,
            steps,
            D=D,
            DH_STEP=far(DH_STEP),
            DH_CHANNEL=DH_CHANNEL,
            A_STEP=far(A_STEP),
            A_CHANNEL=A_CHANNEL,
            H_STEP=far(H_STEP),
            H_CHANNEL=H_CHANNEL,
            RESET_STEP=far(RESET_STEP),
            DH_LAST_CHANNEL=DH_LAST_CHANNEL,
            H0_CHANNEL=H0_CHANNEL,
            REVERSE=REVERSE,
            BLOCK_T=AGAIN,
            BLOCK_D=BLOCK_D,
            SOME=True,
        )
        if dh0 is not None:
            tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, carry, mask=wild)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    dh, a, h = inputs["dh"], inputs["a"], inputs["h"]
    return [
        Launch(
            kernel=linear_scan_bwd_blocked_diagonal,
            grid=(rows * triton.cdiv(a.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK": config.block, "BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=forward.load_bits((dh, a, h), config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.block_t % config.block:
        return f"block_t={config.block_t} is not a multiple of block={config.block}"
    return forward.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """Not the default until measured to be faster than triton.sequential somewhere."""
    return 14


VARIANT = Variant(
    op="linear_scan_bwd",
    name="triton.blocked_diagonal",
    summary="diagonal blocks of the transfer matrix applied densely, the rest through the carry",
    config=Config,
    axes={"block": (4, 8, 16), "block_t": (16, 32), "block_d": (64, 128, 256), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
