"""The published PyTorch code: taps one by one, gates, a Python loop over time, gelu and the product.

Source: google-deepmind/recurrentgemma and transformers' RecurrentGemma; ops/rg_lru/_published.py says what differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.rg_lru import _published
from griffin_kernels.ops.temporal_conv1d import eager_shifted as conv
from griffin_kernels.ops.temporal_conv1d.op import Call as Convolution


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
    u, new_conv_state = conv.run(Convolution(x, conv_weight, conv_bias, conv_state, segment_pos, cu_seqlens), config)
    h, h_last = _published.rg_lru(u, *gates, h0, segment_pos, cu_seqlens)
    out = torch.nn.functional.gelu(y, approximate="tanh") * h
    return out, new_conv_state, h_last, h if with_h else None


VARIANT = Variant(
    op="recurrent_block",
    name="eager.published",
    summary="the published code: a Python loop over time",
    run=run,
    config=NoConfig,
    baseline=True,
)
