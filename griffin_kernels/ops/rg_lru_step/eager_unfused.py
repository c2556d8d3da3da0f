"""One token of the RG-LRU in PyTorch: two batched products, some twelve elementwise steps, the state overwritten.

What the published code does for a sequence of one. Runs on every device and dtype; launches bind, not the weights.
Source: google-deepmind/recurrentgemma, transformers' RecurrentGemma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _slots
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.rg_lru_step.op import Call


def gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sigmoid(x W + b) [B, D] in the accumulator's dtype; x [B, D], weight [H, n, n], bias [H, n]."""
    blocks = x.reshape(x.shape[0], *bias.shape).transpose(0, 1)  # [H, B, n]
    z = torch.bmm(blocks, weight).transpose(0, 1).reshape(x.shape)
    wide = accumulator(x.dtype)
    return z.to(wide).add_(bias.to(wide).flatten()).sigmoid_()


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    h, positions, at = call.h, call.positions, _slots.of(call, call.h.shape[0])
    i = gate(call.x, call.input_gate_weight, call.input_gate_bias)
    r = gate(call.x, call.recurrence_gate_weight, call.recurrence_gate_bias)
    log_a = r * (-DECAY * torch.nn.functional.softplus(call.a_param.to(r.dtype)))
    a, m = torch.exp(log_a), (2 * log_a).expm1_().neg_().sqrt_()
    before = _slots.rows(h, at.read)
    if positions is not None:
        # whatever was left there is not read, NaN included
        begins = (positions == 0)[:, None]
        before, m = before.masked_fill(begins, 0.0), m.masked_fill_(begins, 1.0)
    new = torch.addcmul(i.mul_(call.x).mul_(m), a, before)
    _slots.write(h, at.written, new)
    return _slots.silence(new.to(call.x.dtype), at.read), h


VARIANT = Variant(
    op="rg_lru_step",
    name="eager.unfused",
    summary="two batched gate products, elementwise steps",
    run=run,
    config=NoConfig,
    baseline=True,
)
