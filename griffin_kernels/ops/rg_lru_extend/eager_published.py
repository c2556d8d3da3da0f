"""Gathered states, the published Python loop over time in the accumulator's dtype, kept states scattered.

    h0 = states[slots],   h = rg_lru(x, h0) as its eager.published,   states[keep] = h        float32

What an engine without pools would do around the published code; states have to be kept before they are rounded.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _keep
from griffin_kernels.ops.rg_lru import eager_published
from griffin_kernels.ops.rg_lru_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    wide = accumulator(call.x.dtype)
    given = gathered(call, call.x)
    floats = {k: v.to(wide) for k, v in given._asdict().items() if isinstance(v, Tensor) and v.is_floating_point()}
    h, _ = eager_published.run(given._replace(**floats))
    _keep.write(call.states, call.keep, h)
    return h.to(call.x.dtype), call.states


VARIANT = Variant(
    op="rg_lru_extend",
    name="eager.published",
    summary="states gathered, the published Python loop over time, states scattered",
    run=run,
    baseline=True,
)
