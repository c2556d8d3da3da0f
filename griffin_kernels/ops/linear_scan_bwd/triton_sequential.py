"""One pass from the last step to the first, the carry in registers, ``block_t`` rows loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   da_t = m_t g_t h_{t-1},   c_t = m_t a_t g_t,   dh0 = c_0

with m_t = 0 where the state was reset. The mirror of linear_scan/triton.sequential: the product with h_{t-1} is taken
on the way, so every stream is read or written once. Only the last tile, which holds the first step, is masked.

Bytes per element: the ideal five data elements (10 in bf16, 20 in fp32). Bound by memory bandwidth where N * D is
large; by memory latency where N * D / block_d programs cannot fill the device.
Source: the chain rule on the recurrence of arXiv 2402.19427, section 2.4.
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
from griffin_kernels.ops._triton import host as forward
from griffin_kernels.ops._triton.scan import load_state, span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.linear_scan_bwd import _triton
from griffin_kernels.ops.linear_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def linear_scan_bwd_sequential(
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
    carry = scan_rows(
        dh + (batch * dh_batch + first * (SIGN * far(DH_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        h + (batch * h_batch + first * (SIGN * far(H_STEP))),
        reset,
        None,
        None,
        dx + (batch * T + first) * D,
        da + (batch * T + first) * D,
        None,
        0,
        None,
        0,
        None,
        load_state(dh_last, row, dh_last_row, columns, inside, DH_LAST_CHANNEL, ACC, BLOCK_D),
        load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_D),
        columns,
        inside,
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
        BLOCK_T=BLOCK_T,
        BLOCK_D=BLOCK_D,
    )
    if dh0 is not None:
        tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    dh, a, h = inputs["dh"], inputs["a"], inputs["h"]
    return [
        Launch(
            kernel=linear_scan_bwd_sequential,
            grid=(rows * triton.cdiv(a.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=forward.load_bits((dh, a, h), config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return forward.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if forward.starves(case, device, streams=3) else 30


VARIANT = Variant(
    op="linear_scan_bwd",
    name="triton.sequential",
    summary="one pass, carry in registers, rows loaded ahead",
    config=Config,
    axes={"block_t": (8, 16, 32), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
