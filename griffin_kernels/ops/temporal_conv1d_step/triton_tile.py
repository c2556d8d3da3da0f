"""One launch in place, a program per tile of batch rows by channels: weights are read once for all rows of a tile.

    y = bias + sum_k weight[k] (state, x)[k];   state = (state[1:], x)

For large batches: triton.rows reads K + 1 elements of weights per channel and row, beside K of data, here a tile of
rows shares them. A thread owns its rows' channels, as there; sums likewise. Bound by memory: 2 K data elements for
every element of x.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step


@dataclass(frozen=True)
class Config:
    """block_b, block_d: rows and channels per program."""

    block_b: int = 8
    block_d: int = 128
    num_warps: int = 4


def reject(case: Case, device: Device, config: Config) -> str | None:
    if reason := host.unfit(case, device, config.block_d, config.num_warps, config.block_b):
        return reason
    if config.block_b > 8 and config.block_b >= 2 * case["B"]:
        return f"block_b={config.block_b} is at least twice the {case['B']} rows: half of it does nothing"
    return None


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="triton.tile",
    summary="one launch in place, weights read once for a tile of rows",
    config=Config,
    axes={"block_b": (4, 8, 16), "block_d": (64, 128, 256), "num_warps": (2, 4)},
    reject=reject,
    rank=lambda case, device: 25,  # the default for large batches
    launches=_triton_conv_step.launches,
)
