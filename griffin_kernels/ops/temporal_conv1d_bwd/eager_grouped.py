"""The gradient that autograd computes for torch's conv1d with one group per channel: what published code pays."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig
from griffin_kernels.device import Device
from griffin_kernels.ops import _activation
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import eager_grouped as forward
from griffin_kernels.ops.temporal_conv1d._conv_packed import ConvGradients, apart
from griffin_kernels.ops.temporal_conv1d_bwd.op import Call, convolution


def run(call: Call, config: NoConfig) -> ConvGradients:
    if (activation := call.activation) is not None:
        call = call._replace(dy=_activation.through(activation, call.dy, forward.sums(convolution(call))))
    if call.cu_seqlens is None:
        return grouped(call.dy, call.dnew_state, call.x, call.weight, call.bias, call.state)
    return apart(grouped, call, call.dnew_state)


def grouped(
    dy: Tensor, dnew_state: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None
) -> ConvGradients:
    """ConvGradients of one document per batch row. bias: for its dtype."""
    _, time, width = x.shape
    rows = weight.shape[0] - 1
    dtype = torch.promote_types(x.dtype, weight.dtype)
    inputs = (x if state is None else torch.cat([state, x], dim=1)).to(dtype)
    grad = dy.transpose(1, 2).to(dtype)
    if state is None:
        # conv1d pads both ends; what it makes of the far one is cut off, and has no gradient
        grad = torch.nn.functional.pad(grad, (0, rows))
    operands, padding = (grad, inputs.transpose(1, 2), weight.t()[:, None].to(dtype)), [rows if state is None else 0]
    # bias sizes, stride, padding, dilation, transposed, output padding, groups, what is wanted
    dinputs, dweight, dbias = torch.ops.aten.convolution_backward(
        *operands, [width], [1], padding, [1], False, [0], width, [True, True, bias is not None]
    )
    dinputs = dinputs.transpose(1, 2).to(x.dtype).contiguous()
    held = min(rows, inputs.shape[1])
    if dnew_state is not None and held:
        dinputs[:, inputs.shape[1] - held :] += dnew_state[:, rows - held :]
    dstate = None if state is None else dinputs[:, :rows].clone()
    return (
        dinputs[:, inputs.shape[1] - time :].contiguous(),
        dweight[:, 0].t().to(weight.dtype).contiguous(),
        None if bias is None else dbias.to(bias.dtype),
        dstate,
    )


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    if device.kind == "cpu" and case.dtype == "bfloat16" and "avx512" not in device.arch:
        return "without AVX-512 PyTorch rounds the gradient's sums to bfloat16 more than once: 2.4 roundings were seen"
    return forward.DOCUMENTS if "segmented" in case.flags else None


VARIANT = backward_of(
    forward.VARIANT, run, summary="autograd of torch's conv1d with a group per channel", reject=reject
)
