"""The pieces' gradients one after the other, each by the device's tuned kernel; the convolution is run again.

Reached as ``torch.ops.griffin_kernels.*``, as in recurrent_block's eager.composed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.recurrent_block import eager_composed
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block_bwd.op import Call, convolution, recurrence


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    ops = torch.ops.griffin_kernels
    with torch.no_grad():
        u, _ = ops.temporal_conv1d(*forward.convolution(call))
        dh = torch.nn.functional.gelu(call.y, approximate="tanh").mul_(call.dout)
        dy = torch.ops.aten.gelu_backward(call.dout * call.h, call.y, approximate="tanh")
        du, *dgates, dh0 = ops.rg_lru_bwd(*recurrence(call, dh, u))
        dx, dconv_weight, dconv_bias, dconv_state = ops.temporal_conv1d_bwd(*convolution(call, du))
    given = (None if call.conv_state is None else dconv_state, None if call.h0 is None else dh0)
    return dx, dy, dconv_weight, dconv_bias, *dgates, *given


VARIANT = backward_of(
    eager_composed.VARIANT,
    run,
    summary="the tuned gradients of RG-LRU and convolution, gelu's in PyTorch",
    # streams: convolution 2, gelu 3, its gradient 3 and 3, RG-LRU's gradient 4, the convolution's 3
    traffic=lambda case, config: 18 * case["B"] * case["T"] * case["D"] * case.bytes_per_element(),
)
