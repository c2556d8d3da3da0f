"""The published PyTorch code: taps one by one, gates, a Python loop over time, gelu and the product.

Source: google-deepmind/recurrentgemma and transformers' RecurrentGemma; rg_lru/eager_published.py says what differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.recurrent_block.op import Call, convolution
from griffin_kernels.ops.rg_lru import eager_published as lru
from griffin_kernels.ops.rg_lru.op import within
from griffin_kernels.ops.temporal_conv1d import eager_shifted as conv


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    u, new_conv_state = conv.run(convolution(call), config)
    h, h_last = lru.run(within(call, u))
    out = torch.nn.functional.gelu(call.y, approximate="tanh") * h
    return out, new_conv_state, h_last, h if call.with_h else None


VARIANT = Variant(
    op="recurrent_block",
    name="eager.published",
    summary="the published code: a Python loop over time",
    run=run,
    baseline=True,
)
