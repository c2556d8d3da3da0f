"""The pieces' gradients one after the other, each by the device's tuned kernel; the convolution is run again.

Reached as ``torch.ops.griffin_kernels.*``, as in recurrent_block's eager.composed.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant

importlib.import_module("griffin_kernels.functional")  # registers the pieces; kernels import nothing above


def run(
    dout: Tensor,
    dnew_conv_state: Tensor | None,
    dh_last: Tensor | None,
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    ops = torch.ops.griffin_kernels
    with torch.no_grad():
        u, _ = ops.temporal_conv1d(x, conv_weight, conv_bias, conv_state, segment_pos, cu_seqlens)
        dh = torch.nn.functional.gelu(y, approximate="tanh").mul_(dout)
        dy = torch.ops.aten.gelu_backward(dout * h, y, approximate="tanh")
        du, *dgates, dh0 = ops.rg_lru_bwd(dh, dh_last, u, *gates, h, h0, segment_pos, cu_seqlens)
        dx, dconv_weight, dconv_bias, dconv_state = ops.temporal_conv1d_bwd(
            du, dnew_conv_state, x, conv_weight, conv_state, segment_pos, cu_seqlens
        )
    given = (None if conv_state is None else dconv_state, None if h0 is None else dh0)
    return dx, dy, dconv_weight, dconv_bias, *dgates, *given


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: convolution 2, gelu 3, its gradient 3 and 3, RG-LRU's gradient 4, the convolution's 3 streams."""
    return 18 * case["B"] * case["T"] * case["D"] * case.bytes_per_element()


VARIANT = Variant(
    op="recurrent_block_bwd",
    name="eager.composed",
    summary="the tuned gradients of RG-LRU and convolution, gelu's in PyTorch",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    traffic=traffic,
)
