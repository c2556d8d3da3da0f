"""One token of a recurrent block in PyTorch, piece after piece: convolution, RG-LRU, gelu, product.

What the published code does for a sequence of one. Runs on every device and dtype; its some 25 launches bind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.recurrent_block_step.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru_step import eager_unfused as lru
from griffin_kernels.ops.temporal_conv1d_step import eager_shifted as conv


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor, Tensor]:
    u, _ = conv.run(convolution(call), config)
    state, _ = lru.run(recurrence(call, u), config)
    out = state * torch.nn.functional.gelu(call.y, approximate="tanh")
    return _slots.silence(out, _slots.of(call, call.h.shape[0]).read), call.conv_state, call.h


VARIANT = Variant(
    op="recurrent_block_step",
    name="eager.unfused",
    summary="convolution, RG-LRU and gelu one after the other in PyTorch",
    run=run,
    baseline=True,
)
