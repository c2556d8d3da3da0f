"""The pieces one after the other, each by the device's tuned kernel: convolution, RG-LRU, gelu, product.

Reached as ``torch.ops.griffin_kernels.*``, the operators that ``griffin_kernels`` registers, so that this variant uses
whichever kernels are fastest without importing them. u, h and gelu(y) go through memory: five streams more than needed.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.recurrent_block.op import Call, convolution
from griffin_kernels.ops.rg_lru.op import within

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    ops = torch.ops.griffin_kernels
    u, new_conv_state = ops.temporal_conv1d(*convolution(call))
    h, h_last = ops.rg_lru(*within(call, u))
    out = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(h)
    return out, new_conv_state, h_last, h if call.with_h else None


VARIANT = Variant(
    op="recurrent_block",
    name="eager.composed",
    summary="the tuned convolution, the tuned RG-LRU, gelu and a product",
    run=run,
    rank=lambda case, device: 10,
    # two streams each for convolution, RG-LRU and gelu, three for the product
    traffic=lambda case, config: 9 * case["B"] * case["T"] * case["D"] * case.bytes_per_element(),
)
