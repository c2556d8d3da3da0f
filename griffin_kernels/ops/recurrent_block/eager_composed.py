"""The pieces one after the other, each by the device's tuned kernel: convolution, RG-LRU, gelu, product.

Reached as ``torch.ops.griffin_kernels.*``, the operators that ``griffin_kernels`` registers, so that this variant uses
whichever kernels are fastest without importing them. u, h and gelu(y) go through memory: five streams more than needed.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant

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
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    with_h: bool,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    ops = torch.ops.griffin_kernels
    u, new_conv_state = ops.temporal_conv1d(x, conv_weight, conv_bias, conv_state, segment_pos, cu_seqlens)
    h, h_last = ops.rg_lru(u, *gates, h0, segment_pos, cu_seqlens)
    out = torch.nn.functional.gelu(y, approximate="tanh").mul_(h)
    return out, new_conv_state, h_last, h if with_h else None


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: two streams each for convolution, RG-LRU and gelu, three for the product."""
    return 9 * case["B"] * case["T"] * case["D"] * case.bytes_per_element()


VARIANT = Variant(
    op="recurrent_block",
    name="eager.composed",
    summary="the tuned convolution, the tuned RG-LRU, gelu and a product",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    traffic=traffic,
)
