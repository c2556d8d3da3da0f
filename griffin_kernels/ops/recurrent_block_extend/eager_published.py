"""The pieces one after the other in PyTorch, the RG-LRU as the published Python loop over time.

    u = temporal_conv1d(x, conv_states[slots]),  h = rg_lru_extend(u),  out = h gelu(y),  windows scattered

What an engine without pools would do around the published code. Runs wherever PyTorch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.recurrent_block_extend.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru_extend import eager_published
from griffin_kernels.ops.temporal_conv1d_extend import eager_composed


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor, Tensor]:
    u, _ = eager_composed.run(convolution(call), config)
    h, _ = eager_published.run(recurrence(call, u), config)
    out = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(h)
    return out, call.conv_states, call.states


VARIANT = Variant(
    op="recurrent_block_extend",
    name="eager.published",
    summary="windows and states gathered and scattered, the published Python loop over time between",
    run=run,
    baseline=True,
)
