"""Per tap: one shifted multiply-add into dx, one product summed into dweight. See temporal_conv1d/eager_shifted.py.

Each tap reads dy twice and x once, reads and writes dx, and writes and reads a product: some 7 K streams instead of 3.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, accumulator
from griffin_kernels.ops import _activation
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.temporal_conv1d import eager_shifted as forward
from griffin_kernels.ops.temporal_conv1d._conv_packed import ConvGradients, apart
from griffin_kernels.ops.temporal_conv1d_bwd.op import Call, convolution, through_state


def run(call: Call, config: NoConfig) -> ConvGradients:
    if call.activation is not None:
        grad = call.dy.to(accumulator(call.x.dtype))
        call = call._replace(dy=_activation.through(call.activation, grad, forward.sums(convolution(call))))
    incoming = through_state(call)
    if call.cu_seqlens is None:
        return shifted(call.dy, incoming, call.x, call.weight, call.bias, call.state, call.segment_pos)
    return apart(shifted, call, incoming, call.segment_pos)


def shifted(
    dy: Tensor,
    incoming: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    segment_pos: Tensor | None,
) -> ConvGradients:
    """ConvGradients of sequences that are not packed. dy: of the sums. incoming: of the new state, zero where that
    holds zeros. bias: for its dtype.
    """
    wide = accumulator(x.dtype)
    time, taps = x.shape[1], weight.shape[0]
    grad, inputs, w = dy.to(wide), x.to(wide), weight.to(wide)
    before = None if state is None else state.to(wide)
    dx = (grad * w[-1]).contiguous()  # [B, T, D]
    dbefore = None if before is None else torch.zeros_like(before)
    sums = [(grad * inputs).sum((0, 1))]
    for k in range(1, taps):
        inside, tap = min(k, time), w[taps - 1 - k]
        total = torch.zeros_like(tap)
        if k < time:
            here = forward.masked(grad[:, k:], segment_pos, k, k)
            dx[:, : time - k].addcmul_(here, tap)
            total = (here * inputs[:, : time - k]).sum((0, 1))
        if before is not None and dbefore is not None:
            rows = slice(taps - 1 - k, taps - 1 - k + inside)
            here = forward.masked(grad[:, :inside], segment_pos, k, 0)
            dbefore[:, rows].addcmul_(here, tap)
            total = total + (here * before[:, rows]).sum((0, 1))
        sums.append(total)
    if incoming is not None:
        inside = min(time, taps - 1)
        dx[:, time - inside :] += incoming[:, taps - 1 - inside :]
        if dbefore is not None:
            dbefore[:, inside:] += incoming[:, : taps - 1 - inside]
    dstate = None if dbefore is None else dbefore.to(x.dtype)
    dbias = None if bias is None else grad.sum((0, 1)).to(bias.dtype)
    return dx.to(x.dtype), torch.stack(sums[::-1]).to(weight.dtype), dbias, dstate


VARIANT = backward_of(
    forward.VARIANT,
    run,
    summary="one shifted multiply-add and one summed product per tap",
    traffic=functools.partial(forward.traffic, per_tap=7, tensors=3),
)
