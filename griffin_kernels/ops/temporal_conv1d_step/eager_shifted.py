"""One token of the convolution in PyTorch: a sum of taps over the state's rows, then the state shifted by one.

    y = bias + weight[K-1] x + sum over the state's rows;   state[:-1] = state[1:];   state[-1] = x

What a user writes who keeps the last K-1 inputs in a buffer, as the published code does.
Runs on every device and dtype; some ten kernels, of which each is smaller than its launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _activation, _slots
from griffin_kernels.ops.temporal_conv1d_step.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    x, weight, bias, state, positions, *_ = call
    wide, at = accumulator(x.dtype), _slots.of(call, state.shape[0])
    inputs = torch.cat([_slots.rows(state, at.read), x[:, None]], dim=1)  # [B, K, D]
    if positions is not None:
        age = torch.arange(inputs.shape[1] - 1, -1, -1, device=x.device, dtype=torch.int64)
        inputs = inputs.masked_fill((age > positions[:, None])[..., None], 0.0)
    y = (inputs.to(wide) * weight.to(wide)).sum(1)
    y = _activation.apply(call.activation, y if bias is None else y.add_(bias))
    _slots.write(state, at.written, inputs[:, 1:])
    return _slots.silence(y.to(x.dtype), at.read), state


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="eager.shifted",
    summary="a weighted sum over the kept inputs, then the state shifted",
    run=run,
    baseline=True,
)
