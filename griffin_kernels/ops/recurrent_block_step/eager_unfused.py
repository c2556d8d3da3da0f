"""One token of a recurrent block in PyTorch, piece after piece: convolution, RG-LRU, gelu, product.

What the published code does for a sequence of one. Runs on every device and dtype; its some 25 launches bind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.rg_lru_step import eager_unfused as lru
from griffin_kernels.ops.temporal_conv1d_step import eager_shifted as conv
from griffin_kernels.ops.temporal_conv1d_step.op import Call as Convolution


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
    u, _ = conv.run(Convolution(x, conv_weight, conv_bias, conv_state, positions, slots), config)
    state, _ = lru.run(u, *gates, h, positions, slots, config=config)
    out = state * torch.nn.functional.gelu(y, approximate="tanh")
    return _slots.silence(out, slots), conv_state, h


VARIANT = Variant(
    op="recurrent_block_step",
    name="eager.unfused",
    summary="convolution, RG-LRU and gelu one after the other in PyTorch",
    run=run,
    config=NoConfig,
    baseline=True,
)
