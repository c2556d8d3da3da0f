"""One launch in place, a program per batch row and block of channels.

    y = bias + sum_k weight[k] (state, x)[k];   state = (state[1:], x)

A thread owns channels, so that it reads all of its kept inputs, and only then moves them a row up. Every element of x
and of the state is read and written once; weights are read again by every row, from the second-level cache. Sums are
float32, or float64 for float64 data. Bound by its launch until B D is in the hundreds of thousands.
Source: the update kernels of causal-conv1d and flash-linear-attention have the same form.
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
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.temporal_conv1d_step import _triton
from griffin_kernels.ops.temporal_conv1d_step._triton_jit import convolve, keep, rows_of


@dataclass(frozen=True)
class Config:
    """block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_d: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["B", "P"])
def temporal_conv1d_step_rows(
    x,
    weight,
    bias,
    state,
    positions,
    slots,
    y,
    B,
    P,
    x_row,
    state_slot,
    D: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    STATE_ROW,
    STATE_CHANNEL: tl.constexpr,
    POSITION_STEP,
    SLOT_STEP,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, y: [B,D]; state: [P,K-1,D]; positions, slots: [B]. Grid: B * ceil(D / block_d), channels fastest."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    channel = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    there = channel < D
    slot, works = rows_of(row, slots, B, P, far(SLOT_STEP))
    position = None
    if positions is not None:
        position = tl.load(positions + row * far(POSITION_STEP), mask=row < B, other=0)
    inside = there & works
    current = tl.load(x + (row.to(tl.int64) * x_row + channel * X_CHANNEL), mask=inside, other=0.0)
    kept = state + (slot * state_slot + channel * STATE_CHANNEL)
    total = convolve(current, weight, bias, kept, channel, there, inside, position, D, far(STATE_ROW), TAPS, ACC)
    # before y is stored: then nothing that is kept has to be read twice
    if TAPS > 1:
        keep(kept, current, inside, position, far(STATE_ROW), TAPS)
    total = tl.where(works, total, 0.0)
    tl.store(y + (row.to(tl.int64) * D + channel), total.to(y.dtype.element_ty), mask=there)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per batch row and block of channels."""
    args, constexprs = _triton.arguments(inputs, outputs)
    x, state = inputs["x"], inputs["state"]
    return [
        Launch(
            kernel=temporal_conv1d_step_rows,
            grid=(x.shape[0] * triton.cdiv(x.shape[1], config.block_d),),
            args=args,
            constexprs=constexprs | {"BLOCK_D": config.block_d},
            num_warps=config.num_warps,
            tile=config.block_d,
            claims=Claims(load_bits=scan.load_bits((x, state), config.block_d // (32 * config.num_warps))),
        )
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return scan.unfit(case, device, config.block_d, config.num_warps)


def rank(case: Case, device: Device) -> int:
    """The default for a batch that one read of the weights per row does not burden."""
    return 30 if case["B"] < 64 else 20


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="triton.rows",
    summary="one launch in place, a program per row and block of channels",
    config=Config,
    axes={"block_d": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
