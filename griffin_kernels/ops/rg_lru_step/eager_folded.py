"""One token of the RG-LRU in PyTorch with fewer launches: biases folded into the products, the rest in place.

    z = baddbmm(b, x, W) per gate;   log a = -8 softplus(a_param) sigmoid(z_r);   h = a h + sqrt(-expm1(2 log a)) i x

Halves round z to the data's dtype once, with the bias in. Runs on every device and dtype; launches bind, not the
weights, up to a batch of some tens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _slots
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.rg_lru_step.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    x, a_param, input_weight, input_bias, recurrence_weight, recurrence_bias, h, positions, *_ = call
    wide, at = accumulator(x.dtype), _slots.of(call, h.shape[0])
    blocks = x.reshape(x.shape[0], *input_bias.shape).transpose(0, 1)  # [H, B, n]

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        z = torch.baddbmm(bias[:, None].to(x.dtype), blocks, weight)
        return z.transpose(0, 1).reshape(x.shape).to(wide).sigmoid_()

    u = gate(input_weight, input_bias).mul_(x)
    rate = torch.nn.functional.softplus(a_param.to(wide)).mul_(-DECAY)
    log_a = gate(recurrence_weight, recurrence_bias).mul_(rate)
    m = torch.expm1(2 * log_a).neg_().sqrt_()
    a, before = log_a.exp_(), _slots.rows(h, at.read)
    if positions is not None:
        begins = (positions == 0)[:, None]
        m.masked_fill_(begins, 1.0)
        before = before.masked_fill(begins, 0.0)
    new = u.mul_(m).addcmul_(a, before)
    _slots.write(h, at.written, new)
    return _slots.silence(new.to(x.dtype), at.read), h


VARIANT = Variant(
    op="rg_lru_step",
    name="eager.folded",
    summary="biases folded into the gate products, elementwise steps in place",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
)
