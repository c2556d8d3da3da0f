"""The pieces one after the other: convolution and RG-LRU, each with its pool, gelu and a product.

    u = temporal_conv1d_extend(x),  h = rg_lru_extend(u),  out = h gelu(y)

Convolution and RG-LRU are the device's tuned kernels, by ``torch.ops.griffin_kernels.*``. Runs wherever PyTorch does.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.recurrent_block_extend.op import Call, convolution, recurrence

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor, Tensor]:
    ops = torch.ops.griffin_kernels
    u = ops.temporal_conv1d_extend(*convolution(call))
    h = ops.rg_lru_extend(*recurrence(call, u))
    out = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(h)
    return out, call.conv_states, call.states


VARIANT = Variant(
    op="recurrent_block_extend",
    name="eager.composed",
    summary="the tuned convolution and RG-LRU, each with its pool, gelu and a product",
    run=run,
    rank=lambda case, device: 10,
)
