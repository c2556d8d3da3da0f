"""Gathered states, gates by batched matrix products, the device's tuned scan, kept states scattered.

    h0 = states[slots],   h = rg_lru(x, h0) as rg_lru's eager.unfused,   states[keep] = h        float32

What an engine does around a call without pools. On a GPU the whole pool is written anew, since which rows are kept is
known to the device alone. Runs wherever PyTorch does.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _keep
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    given = gathered(call, call.x)
    i, _, log_a, _, m = _lru_eager.terms(given)
    h, _ = _lru_eager.wide_scan(i.mul_(call.x).mul_(m), log_a.exp_(), given)
    _keep.write(call.states, call.keep, h)
    return h.to(call.x.dtype), call.states


VARIANT = Variant(
    op="rg_lru_extend",
    name="eager.composed",
    summary="states gathered, batched gate products, elementwise steps, the tuned scan, states scattered",
    run=run,
    rank=lambda case, device: 10,
)
