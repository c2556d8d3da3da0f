"""One launch in place, a program per batch row and block of channels.

    y = bias + sum_k weight[k] (state, x)[k];   state = (state[1:], x)

A thread owns channels, so that it reads all of its kept inputs, and only then moves them a row up. Every element of x
and of the state is read and written once; weights are read again by every row, from the second-level cache. Sums are
float32, or float64 for float64 data. Bound by its launch until B D is in the hundreds of thousands.
Source: the update kernels of causal-conv1d and flash-linear-attention have the same form.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step


@dataclass(frozen=True)
class Config:
    """block_d: channels per program; block_d / (32 num_warps) is a thread's share."""

    block_d: int = 256
    num_warps: int = 1


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="triton.rows",
    summary="one launch in place, a program per row and block of channels",
    config=Config,
    axes={"block_d": (64, 128, 256, 512, 1024), "num_warps": (1, 2, 4)},
    reject=lambda case, device, config: host.unfit(case, device, config.block_d, config.num_warps),
    rank=lambda case, device: 30 if case["B"] < 64 else 20,  # one read of the weights per row burdens larger batches
    launches=_triton_conv_step.launches,
)
