"""Gathered states, the device's tuned scan in the accumulator's dtype, kept states scattered.

    h0 = states[slots],   h = linear_scan(x, a, h0),   states[keep] = h        float32

What an engine does around a call without pools: states have to be kept before they are rounded, so that 16-bit data is
widened first. On a GPU the whole pool is written anew, since which rows are kept is known to the device alone. Runs
wherever PyTorch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _keep
from griffin_kernels.ops.linear_scan_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    given, wide = gathered(call), accumulator(call.x.dtype)
    h, _, _ = torch.ops.griffin_kernels.linear_scan(*given._replace(x=given.x.to(wide), a=given.a.to(wide)))
    _keep.write(call.states, call.keep, h)
    return h.to(call.x.dtype), call.states


VARIANT = Variant(
    op="linear_scan_extend",
    name="eager.composed",
    summary="states gathered, the tuned scan, states scattered",
    run=run,
    rank=lambda case, device: 10,
)
