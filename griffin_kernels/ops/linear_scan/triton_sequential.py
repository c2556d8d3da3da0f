"""One pass over time, the carry in registers, ``block_t`` rows loaded ahead of the scan.

    h_t = a_t * h_{t-1} + x_t

A program owns ``block_d`` channels of one batch entry or packed sequence. It loads block_t rows of x and a into
registers, all loads issued before the first is used, then scans and stores them: the arithmetic is one multiply-add per
element, so what matters is bytes in flight. Only the last tile is masked in time.

Bytes per element: the ideal three data elements (6 in bf16, 12 in fp32). Bound by memory bandwidth where N * D is
large; by memory latency where N * D / block_d programs cannot fill the device (see triton.chunked).
Source: the recurrence of arXiv 2402.19427, section 2.4; the paper's own kernel scans sequentially too (section 4.2).
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
from griffin_kernels.ops._triton_strides import far
from griffin_kernels.ops.linear_scan import _triton
from griffin_kernels.ops.linear_scan._triton_jit import load_state, span
from griffin_kernels.ops.linear_scan._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t: rows loaded ahead. block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_t: int = 32
    block_d: int = 64
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def linear_scan_sequential(
    x,
    a,
    h0,
    reset,
    cu_seqlens,
    h,
    h_last,
    T,
    x_batch,
    a_batch,
    reset_batch,
    h0_row,
    D: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_CHANNEL: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, a, h: [B,T,D]; h0, h_last: [N,D]; reset: [B,T] bytes. Grid: N * ceil(D / block_d), channels fastest."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    columns = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    batch, first, steps = span(row, cu_seqlens, T, REVERSE)
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    carry = scan_rows(
        x + (batch * x_batch + first * (SIGN * far(X_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        reset,
        None,
        None,
        h + (batch * T + first) * D,
        None,
        0,
        None,
        load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_D),
        columns,
        inside,
        steps,
        D=D,
        X_STEP=far(X_STEP),
        X_CHANNEL=X_CHANNEL,
        A_STEP=far(A_STEP),
        A_CHANNEL=A_CHANNEL,
        RESET_STEP=far(RESET_STEP),
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_D=BLOCK_D,
    )
    tl.store(h_last + tl.cast(row, tl.int64) * D + columns, carry, mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and block of channels."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    x, a = inputs["x"], inputs["a"]
    return [
        Launch(
            kernel=linear_scan_sequential,
            grid=(rows * triton.cdiv(x.shape[2], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_T": config.block_t, "BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_t * config.block_d,
            claims=Claims(load_bits=_triton.load_bits((x, a), config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if _triton.starves(case, device, streams=2) else 30


VARIANT = Variant(
    op="linear_scan",
    name="triton.sequential",
    summary="one pass, carry in registers, rows loaded ahead",
    config=Config,
    axes={"block_t": (16, 32, 64), "block_d": (32, 64, 128, 256), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
