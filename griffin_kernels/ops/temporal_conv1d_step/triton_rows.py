"""One launch in place, a program per batch row and block of channels.

    y = bias + sum_k weight[k] (state, x)[k];   state = (state[1:], x)

A thread owns channels, so that it reads all of its kept inputs, and only then moves them a row up. Every element of x
and of the state is read and written once; weights are read again by every row, from the second-level cache. Sums are
float32, or float64 for float64 data. Bound by its launch until B D is in the hundreds of thousands.
Source: the update kernels of causal-conv1d and flash-linear-attention have the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step
from griffin_kernels.ops.temporal_conv1d_step._triton_conv_step import step
from griffin_kernels.ops.temporal_conv1d_step.op import Call


@dataclass(frozen=True)
class Config:
    """block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_d: int = 256
    num_warps: int = 1


@triton.jit(do_not_specialize=["B", "P"])
def temporal_conv1d_step_rows(
    x, conv, indices, y, B, P, D: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr, BLOCK_D: tl.constexpr
):
    """x, y: [B,D]; positions, slots: [B]. Grid: B * ceil(D / block_d), channels fastest."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // BLOCKS
    channel = (tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = step(x, conv, indices, row, channel, B, P, D, TAPS, ACC)
    tl.store(y + (row.to(tl.int64) * D + channel), total.to(y.dtype.element_ty), mask=channel < D)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per batch row and block of channels."""
    return [_triton_conv_step.launch(temporal_conv1d_step_rows, call, outputs, config, 1)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return host.unfit(case, device, config.block_d, config.num_warps)


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
