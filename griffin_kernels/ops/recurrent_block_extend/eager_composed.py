"""The pieces one after the other, the first and the last two in PyTorch: gathered windows, convolution, RG-LRU, gelu.

    u = temporal_conv1d(x, conv_states[slots]),  h = rg_lru_extend(u),  out = h gelu(y),  windows scattered

Convolution and RG-LRU are the device's tuned kernels, by ``torch.ops.griffin_kernels.*``. On a GPU the whole pool of
windows is written anew, since which rows are kept is known to the device alone. Runs wherever PyTorch does.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _keep
from griffin_kernels.ops.recurrent_block_extend.op import Call, convolution, recurrence, window

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor, Tensor]:
    ops, before = torch.ops.griffin_kernels, window(call)
    u, _ = ops.temporal_conv1d(*convolution(call, before))
    h = ops.rg_lru_extend(*recurrence(call, u))
    out = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(h)
    _keep.write_windows(call.conv_states, call, before)
    return out, call.conv_states, call.states


VARIANT = Variant(
    op="recurrent_block_extend",
    name="eager.composed",
    summary="windows gathered and scattered, the tuned convolution, the tuned RG-LRU, gelu and a product",
    run=run,
    rank=lambda case, device: 10,
)
