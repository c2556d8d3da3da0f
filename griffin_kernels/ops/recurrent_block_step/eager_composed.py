"""The pieces of one token one after the other, each by the device's tuned kernel: convolution, RG-LRU, gelu, product.

Reached as ``torch.ops.griffin_kernels.*``, the operators that ``griffin_kernels`` registers, so that this variant uses
whichever kernels are fastest without importing them. Four launches and two dispatches; the fallback for what the fused
kernels refuse, such as float64 or wide gate blocks.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.recurrent_block_step.op import Call, convolution, recurrence

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor, Tensor]:
    ops = torch.ops.griffin_kernels  # without ``out``, a call's last field
    u = ops.temporal_conv1d_step(*convolution(call)[:-1])
    state = ops.rg_lru_step(*recurrence(call, u)[:-1])
    out = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(state)
    return _slots.silence(out, _slots.of(call, call.h.shape[0]).read), call.conv_state, call.h


VARIANT = Variant(
    op="recurrent_block_step",
    name="eager.composed",
    summary="the tuned one-token convolution and RG-LRU, gelu and a product",
    run=run,
    rank=lambda case, device: 10,
)
