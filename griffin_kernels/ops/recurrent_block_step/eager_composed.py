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

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    ops = torch.ops.griffin_kernels
    u = ops.temporal_conv1d_step(x, conv_weight, conv_bias, conv_state, positions, slots)
    state = ops.rg_lru_step(u, *gates, h, positions, slots)
    out = torch.nn.functional.gelu(y, approximate="tanh").mul_(state)
    return _slots.silence(out, slots), conv_state, h


VARIANT = Variant(
    op="recurrent_block_step",
    name="eager.composed",
    summary="the tuned one-token convolution and RG-LRU, gelu and a product",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
)
