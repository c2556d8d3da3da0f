"""One launch in place, a program per tile of batch rows by channels: weights are read once for all rows of a tile.

    y = bias + sum_k weight[k] (state, x)[k];   state = (state[1:], x)

For large batches: triton.rows reads K + 1 elements of weights per channel and row, beside K of data, here a tile of
rows shares them. A thread owns its rows' channels, as there; sums likewise. Bound by memory: 2 K data elements for
every element of x.
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
    """block_b, block_d: rows and channels per program."""

    block_b: int = 8
    block_d: int = 128
    num_warps: int = 4


@triton.jit(do_not_specialize=["B", "P"])
def temporal_conv1d_step_tile(
    x,
    conv,
    indices,
    y,
    B,
    P,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x, y: [B,D]; positions, slots: [B]. Grid: ceil(B / block_b) * ceil(D / block_d), channels fastest."""
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = ((tl.program_id(0) // BLOCKS) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    channel = ((tl.program_id(0) % BLOCKS) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    total = step(x, conv, indices, row, channel, B, P, D, TAPS, ACC)
    tl.store(y + (row.to(tl.int64) * D + channel), total.to(y.dtype.element_ty), mask=(channel < D) & (row < B))


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """One program per tile."""
    block_b = config.block_b
    return [_triton_conv_step.launch(temporal_conv1d_step_tile, call, outputs, config, block_b, BLOCK_B=block_b)]


def reject(case: Case, device: Device, config: Config) -> str | None:
    if reason := host.not_here(device) or host.idle_channels(case, config.block_d):
        return reason
    if reason := host.idle_tile(config.block_b, config.block_d, config.num_warps, device):
        return reason
    if config.block_b > 8 and config.block_b >= 2 * case["B"]:
        return f"block_b={config.block_b} is at least twice the {case['B']} rows: half of it does nothing"
    return None


def rank(case: Case, device: Device) -> int:
    """The default for large batches."""
    return 25


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="triton.tile",
    summary="one launch in place, weights read once for a tile of rows",
    config=Config,
    axes={"block_b": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (2, 4)},
    reject=reject,
    rank=rank,
    launches=launches,
)
