"""Gathered states, the published Python loop over time in the accumulator's dtype, kept states scattered.

    h0 = states[slots],   h_t = a_t * h_{t-1} + x_t token by token,   states[keep] = h        float32

What an engine without pools would do around the published code; states have to be kept before they are rounded.
"""

from __future__ import annotations

import functools

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _keep
from griffin_kernels.ops.linear_scan import _scan_eager, eager_loop
from griffin_kernels.ops.linear_scan_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    given = gathered(call)
    loop = functools.partial(eager_loop.core, config=config)
    h, _ = _scan_eager.forward(loop, given._replace(x=given.x.to(accumulator(call.x.dtype))))
    _keep.write(call.states, call.keep, h)
    return h.to(call.x.dtype), call.states


VARIANT = Variant(
    op="linear_scan_extend",
    name="eager.loop",
    summary="states gathered, the published Python loop over time, states scattered",
    run=run,
    baseline=True,
)
