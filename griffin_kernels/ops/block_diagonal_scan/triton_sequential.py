"""One pass over time, the state of a group of blocks in registers, ``block_t`` steps loaded ahead of the scan.

    h_t = A_t h_{t-1} + x_t

A program owns the blocks whose matrices are ``block_a`` elements of a step: they are contiguous, so its loads are 16
bytes a thread for every n. All loads of block_t steps are issued before the first is used. A product of matrix and
vector is a multiply by the broadcast state and a sum over k: within a thread as far as its 16 bytes go (bf16: a whole
block of 2, two rows of a block of 4, a row of 8), by shuffles within a warp beyond. Matrix instructions do not fit:
they want several vectors per matrix. Only the last tile is masked in time.

Bytes per element of h: n + 2 data elements, the ideal; a dominates (bf16, n = 16: 36). Bound by memory bandwidth where
N * H blocks fill the device; else by the latency of a step, a chain of one multiply, log2(n) additions and one exchange
of the state between threads (see triton.chunked).
Source: the recurrence of linear_scan/triton.sequential, whose form this has, with a matrix in place of a factor.
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
from griffin_kernels.ops.block_diagonal_scan import _triton
from griffin_kernels.ops.block_diagonal_scan._triton_jit import as_vectors, vector_columns
from griffin_kernels.ops.block_diagonal_scan._triton_rows import scan_rows


@dataclass(frozen=True)
class Config:
    """block_t: steps loaded ahead. block_a: elements of a that a program takes of one step, whole blocks."""

    block_t: int = 16
    block_a: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["T"])
def block_diagonal_scan_sequential(
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
    H: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    X_STEP,
    X_CHANNEL: tl.constexpr,
    A_STEP,
    A_BLOCK,
    A_ROW: tl.constexpr,
    A_COLUMN: tl.constexpr,
    RESET_STEP,
    H0_CHANNEL: tl.constexpr,
    REVERSE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """x, h: [B,T,D]; a: [B,T,H,n,n]; h0, h_last: [N,D]; reset: [B,T] bytes. Grid: N * ceil(H / BLOCK_H)."""
    SIGN: tl.constexpr = -1 if REVERSE else 1
    D: tl.constexpr = H * SIZE
    GROUPS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    row = tl.program_id(0) // GROUPS
    block = (tl.program_id(0) % GROUPS) * BLOCK_H
    columns, inside = vector_columns(block, H, SIZE, N, BLOCK_H)
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
        as_vectors(load_state(h0, row, h0_row, columns, inside, H0_CHANNEL, ACC, BLOCK_H * N), N, BLOCK_H),
        block,
        steps,
        H=H,
        SIZE=SIZE,
        N=N,
        X_STEP=far(X_STEP),
        X_CHANNEL=X_CHANNEL,
        A_STEP=far(A_STEP),
        A_BLOCK=far(A_BLOCK),
        A_ROW=A_ROW,
        A_COLUMN=A_COLUMN,
        RESET_STEP=far(RESET_STEP),
        H0_CHANNEL=H0_CHANNEL,
        REVERSE=REVERSE,
        BLOCK_T=BLOCK_T,
        BLOCK_H=BLOCK_H,
    )
    tl.store(h_last + tl.cast(row, tl.int64) * D + columns, tl.reshape(carry, (BLOCK_H * N,)), mask=inside)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per row of h0 and group of blocks."""
    rows, args, constexprs = _triton.scan_arguments(inputs, outputs)
    a = inputs["a"]
    tile = _triton.tile_constexprs(a, config.block_a)
    return [
        Launch(
            kernel=block_diagonal_scan_sequential,
            grid=(rows * triton.cdiv(tile["H"], tile["BLOCK_H"]),),
            args=args,
            constexprs=constexprs | tile | {"BLOCK_T": config.block_t},
            num_warps=config.num_warps,
            tile=config.block_t * tile["BLOCK_H"] * tile["SIZE"],
            claims=Claims(load_bits=_triton.load_bits(a, config.block_a, config.num_warps)),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit(case, device, config.block_a, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default wherever its loads can keep the memory busy."""
    return 20 if _triton.starves(case, device, Config.block_t, streams=1) else 30


VARIANT = Variant(
    op="block_diagonal_scan",
    name="triton.sequential",
    summary="one pass, states in registers, steps loaded ahead",
    config=Config,
    axes={"block_t": (4, 8, 16, 32), "block_a": (256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
