"""Gathered windows, one shifted multiply-add per tap, kept windows scattered: what an engine does around a call.

    before = states[slots],   y = temporal_conv1d(x, before) as its eager.shifted,   states[keep] = windows of x

On a GPU the whole pool is written anew, since which rows are kept is known to the device alone. Runs wherever PyTorch
does.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _activation, _keep
from griffin_kernels.ops.temporal_conv1d import eager_shifted
from griffin_kernels.ops.temporal_conv1d_extend.op import Call, gathered


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    given = gathered(call)
    y = eager_shifted.sums(given, lambda z: _activation.apply(call.activation, z).to(call.x.dtype))
    assert given.state is not None
    _keep.write_windows(call.states, call, given.state)
    return y, call.states


VARIANT = Variant(
    op="temporal_conv1d_extend",
    name="eager.composed",
    summary="windows gathered, one shifted multiply-add per tap, windows scattered",
    run=run,
    rank=lambda case, device: 10,
)
