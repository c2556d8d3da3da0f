"""Gathered windows, torch's conv1d with one group per channel, kept windows scattered: what published code calls.

    before = states[slots],   y = temporal_conv1d(x, before) as its eager.grouped,   states[keep] = windows of x

An activation is a call of its own, of sums that have been rounded.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _activation, _keep
from griffin_kernels.ops.temporal_conv1d import eager_grouped
from griffin_kernels.ops.temporal_conv1d_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    given = gathered(call)
    y = _activation.apply(call.activation, eager_grouped.sums(given))
    assert given.state is not None
    _keep.write_windows(call.states, call, given.state)
    return y, call.states


VARIANT = Variant(
    op="temporal_conv1d_extend",
    name="eager.grouped",
    summary="windows gathered, torch's grouped conv1d, windows scattered",
    run=run,
    reject=eager_grouped.reject,
    baseline=True,
)
