"""recurrent_block_bwd: the gradient of recurrent_block. The contract.

h is rg_lru's output in the data's dtype; the convolution and the gates are recomputed. With G = gelu in its tanh form,

    dh = dout G(y),   dy = dout h G'(y)
    du, d gates, dh0 = rg_lru_bwd(dh, dh_last, u, h),   dx, dconv_weight, dconv_bias, dconv_state = conv_bwd(du)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._activation import gelu_and_slope
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block_bwd.cost import cost
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_bwd import op as lru_bwd
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_bwd import op as conv_bwd


class Call(NamedTuple):
    """The arguments of recurrent_block_bwd. dout, dnew_conv_state, dh_last: what reaches the outputs. h: rg_lru's."""

    dout: Sequence
    dnew_conv_state: conv.ConvState
    dh_last: State
    x: Sequence
    y: Sequence
    conv_weight: conv.Taps
    conv_bias: Channels
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    h: Sequence
    conv_state: conv.ConvState = None
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None


def recurrence(call: Call, dh: Tensor, u: Tensor) -> lru_bwd.Call:
    """The RG-LRU's gradient in a call. dh: what reaches h. u: the convolution's output."""
    state = call.h0, call.segment_pos, call.cu_seqlens
    return lru_bwd.Call(dh, call.dh_last, u, *lru.gates_of(call), call.h, *state)


def convolution(call: Call, du: Tensor) -> conv_bwd.Call:
    """The convolution's gradient in a call, of what reaches its output."""
    state = call.conv_state, call.segment_pos, call.cu_seqlens
    return conv_bwd.Call(du, call.dnew_conv_state, call.x, call.conv_weight, call.conv_bias, *state)


def reference(call: Call) -> tuple[Tensor | None, ...]:
    """The pieces' own gradients, in the order of the chain rule."""
    u, _ = conv.reference(forward.convolution(call))
    gelu, slope = gelu_and_slope(call.y)
    du, *dgates, dh0 = lru_bwd.reference(recurrence(call, call.dout * gelu, u))
    assert du is not None
    dx, dconv_weight, dconv_bias, dconv_state = conv_bwd.reference(convolution(call, du))
    return dx, call.dout * call.h * slope, dconv_weight, dconv_bias, *dgates, dconv_state, dh0


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, h by the reference in the accumulator's dtype, and random gradients."""
    inputs = forward.make_inputs(case, device, seed)
    wide = accumulator(case.torch_dtype)
    _, kept, h_last, h = pieces.reference(forward.OP, inputs | {"with_h": True}, wide)
    del inputs["with_h"]
    assert kept is not None and h_last is not None and h is not None
    draw = Draws(case, device, seed + 1)
    dout = draw.data(draw.normal(*h.shape))
    dkept = draw.data(draw.normal(*kept.shape)) if "state" in case.data else None
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    return inputs | {"dout": dout, "dnew_conv_state": dkept, "dh_last": dh_last, "h": draw.data(h)}


def tolerance(case: Case) -> Tolerance:
    """rg_lru_bwd's bounds, with the convolution's rounding on the way in and out."""
    # u enters with the convolution's error as in the forward (3 e_u); dh is rounded once where it goes through memory,
    # and the convolution's gradient sums K of du with its own rounding. dy has gelu's slope, at most 1.13, and h's
    # rounding. A worst element may meet gelu(y) = 4, as in the forward, where dout G has an rms of 0.65.
    convolved, recurrent = conv.tolerance(case), lru_bwd.tolerance(case)
    rounding = torch.finfo(case.torch_dtype).eps / 2
    return Tolerance(
        rel_norm=recurrent.rel_norm + 4 * convolved.rel_norm + 2 * rounding,
        worst=6 * (recurrent.worst + 4 * convolved.worst + 2 * rounding),
    )


OP = gradient_of(
    forward,
    summary="the gradients of recurrent_block, convolution and gates recomputed",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "dy": TensorSpec("B T D"),
        **{f"d{name}": forward.OP.inputs[name] for name in forward.WEIGHTS},
        "dconv_state": TensorSpec("N K-1 D", optional=True),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
)
