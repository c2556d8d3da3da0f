"""One token of the convolution in PyTorch, tap by tap into one accumulator; nothing is gathered into a longer buffer.

    y = bias + weight[K-1] x;   y += weight[K-1-k] state[K-1-k],   k = 1 .. K-1

Fewer bytes than eager.shifted where the batch is large, one launch per tap. Runs on every device and dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _activation, _slots
from griffin_kernels.ops.temporal_conv1d_step.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    x, weight, bias, state, positions, *_ = call
    wide, taps, at = accumulator(x.dtype), weight.shape[0], _slots.of(call, state.shape[0])
    w, kept = weight.to(wide), _slots.rows(state, at.read)  # [B, K-1, D]
    if positions is not None:
        age = torch.arange(taps - 1, 0, -1, device=x.device, dtype=torch.int64)
        kept = kept.masked_fill((age > positions[:, None])[..., None], 0.0)
    y = x.to(wide) * w[-1] if bias is None else torch.addcmul(bias.to(wide), x.to(wide), w[-1])
    for row in range(taps - 1):
        y.addcmul_(kept[:, row].to(wide), w[row])
    y = _activation.apply(call.activation, y)
    _slots.write(state, at.written, torch.cat([kept[:, 1:], x[:, None]], dim=1)[:, : taps - 1])
    return _slots.silence(y.to(x.dtype), at.read), state


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="eager.taps",
    summary="one multiply-add per tap, then the state shifted",
    run=run,
    rank=lambda case, device: 10,
)
