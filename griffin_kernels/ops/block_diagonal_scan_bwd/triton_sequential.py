"""One pass from the last step to the first, states in registers, ``block_t`` steps loaded ahead of the scan.

    g_t = dh_t + c_{t+1},   dx_t = g_t,   dA_t = m_t g_t h_{t-1}^T,   c_t = m_t A_t^T g_t,   dh0 = c_0

with m_t = 0 where the state was reset. The mirror of block_diagonal_scan/triton.sequential: a matrix in registers is
multiplied by g along its rows and summed over them, dA is written with the same 16 bytes a thread. Only the last tile,
which holds the first step, is masked.

Bytes per element of h: 2 n + 3 data elements, the ideal; a and dA dominate (bf16, n = 16: 70). Bound by memory
bandwidth where N * H blocks fill the device; else by the latency of a step. The sum over a matrix's rows crosses
threads: for n = 16 four shuffles per element of a, by count some 40% of what an H100 issues while it moves the bytes.
Source: the chain rule on block_diagonal_scan.
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
from griffin_kernels.ops._triton.scan import load_state, span
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.block_diagonal_scan import _triton as forward
from griffin_kernels.ops.block_diagonal_scan._triton_jit import as_vectors, vector_columns
from griffin_kernels.ops.block_diagonal_scan_bwd import _triton
from griffin_kernels.ops.block_diagonal_scan_bwd._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t: steps loaded ahead. block_a: elements of a that a program takes of one step, whole blocks."""

    block_t: int = 8
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def block_diagonal_scan_bwd_sequential(
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
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    DH_STEP,
    DH_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    H_STEP,
    H_CHANNEL: tl.constexpr,
    RESET_STEP,
    DH_LAST_CHANNEL: tl.constexpr,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """dh, h, dx: [B,T,D]; a, da: [B,T,H,n,n]; dh_last, h0, dh0: [N,D]; reset: bytes. Grid: N * ceil(H / BLOCK_H)."""
    SIGN: tl.constexpr = 1 if REVERSE else -1
    D: tl.constexpr = H * SIZE
    GROUPS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    row = tl.program_id(0) // GROUPS
    block = (tl.program_id(0) % GROUPS) * BLOCK_H
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
    batch, first, steps = span(row, cu_seqlens, T, not REVERSE)
    if reset is not None:
        reset += batch * reset_batch + first * (SIGN * far(RESET_STEP))
    start = load_state(dh_last, row, dh_last_row, columns, inside, DH_LAST_CHANNEL, ACC, BLOCK_H * N)
    carry = scan_rows(
        dh + (batch * dh_batch + first * (SIGN * far(DH_STEP))),
        a + (batch * a_batch + first * (SIGN * far(A_STEP))),
        h + (batch * h_batch + first * (SIGN * far(H_STEP))),
        reset,
        None,
        None,
        dx + (batch * T + first) * D,
        da + (batch * T + first) * (D * SIZE),
        None,
        0,
        None,
        0,
        None,
        as_vectors(start, N, BLOCK_H),
        load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_H * N),
        block,
        steps,
        steps,
        H=H,
        SIZE=SIZE,
        N=N,
        DH_STEP=far(DH_STEP),
        DH_CHANNEL=DH_CHANNEL,
        A_STEP=far(A_STEP),
        A_BLOCK=far(A_BLOCK),
        A_ROW=A_ROW,
        A_COLUMN=A_COLUMN,
        H_STEP=far(H_STEP),
        H_CHANNEL=H_CHANNEL,
        RESET_STEP=far(RESET_STEP),
        DH_LAST_CHANNEL=DH_LAST_CHANNEL,
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_H=BLOCK_H,
    )
    if dh0 is not None:
        tl.store(dh0 + tl.cast(row, tl.int64) * D + columns, tl.reshape(carry, (BLOCK_H * N,)), mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and group of blocks."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    a = inputs["a"]
    tile = forward.tile_constexprs(a, config.block_a)
    return [
        Launch(
            kernel=block_diagonal_scan_bwd_sequential,
            grid=(rows * triton.cdiv(tile["H"], tile["BLOCK_H"]),),
            args=args,
            constexprs=constexprs | tile | {"BLOCK_T": config.block_t},
            num_warps=config.num_warps,
            tile=config.block_t * tile["BLOCK_H"] * tile["SIZE"],
            claims=Claims(load_bits=forward.load_bits(a, config.block_a, config.num_warps)),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return forward.unfit(case, device, config.block_a, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if forward.starves(case, device, Config.block_t, streams=2) else 30


VARIANT = Variant(
    op="block_diagonal_scan_bwd",
    name="triton.sequential",
    summary="one pass, states in registers, steps loaded ahead",
    config=Config,
    axes={"block_t": (4, 8, 16), "block_a": (256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
