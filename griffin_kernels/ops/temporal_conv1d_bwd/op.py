"""temporal_conv1d_bwd: the gradient of temporal_conv1d. The contract.

With x_s for s < 0 the state's rows, m_tk = 1 where tap k of step t counts, and e the gradient that reaches an input
through the new state:

    g_t = dy_t act'(z_t)                                        z_t: the sum, done again; g is dy without an activation
    dx_s = e_s + sum_k weight[K-1-k] m_{s+k,k} g_{s+k}           s >= -(K-1); dstate is dx before time 0
    dweight[K-1-k] = sum over batch and t of m_tk g_t x_{t-k}
    dbias = sum over batch and t of g_t                         None without a bias
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops import _activation
from griffin_kernels.ops._arguments import Offsets, OptionalChannels, Positions, Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.temporal_conv1d import op as forward
from griffin_kernels.ops.temporal_conv1d_bwd.cost import cost


class Call(NamedTuple):
    """The arguments of temporal_conv1d_bwd. dy, dnew_state: what reaches y and the new state."""

    dy: Sequence
    dnew_state: forward.ConvState
    x: Sequence
    weight: forward.Taps
    bias: OptionalChannels
    state: forward.ConvState = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    activation: str | None = None


def convolution(call: Call) -> forward.Call:
    """The convolution whose gradient a call is, without its activation."""
    return forward.Call(call.x, call.weight, call.bias, call.state, call.segment_pos, call.cu_seqlens)


def through_state(call: Call) -> Tensor | None:
    """The gradient of the inputs that the new state holds, zero where it holds zeros in their place."""
    dnew_state, segment_pos, taps = call.dnew_state, call.segment_pos, call.weight.shape[0]
    if dnew_state is None or segment_pos is None or taps == 1 or segment_pos.shape[1] == 0:
        return dnew_state
    return dnew_state.masked_fill(~forward.kept(segment_pos, taps, call.cu_seqlens)[..., None], 0.0)


def reference(call: Call) -> tuple[Tensor | None, ...]:
    """The equations at the top of this file, tap by tap; packed sequences one by one."""
    dy, _, x, weight, bias, state, segment_pos, cu_seqlens, activation = call
    if cu_seqlens is not None:
        dxs, dweights, dbiases, dstates = zip(*map(reference, forward.sequences(call)), strict=True)
        dbias = None if bias is None else sum(dbiases)
        return torch.cat(dxs, dim=1), sum(dweights), dbias, None if state is None else torch.cat(dstates)
    if activation is not None:
        dy = _activation.through(activation, dy, forward.reference(convolution(call))[0])
    batch, time, width = x.shape
    taps = weight.shape[0]
    before = x.new_zeros(batch, taps - 1, width) if state is None else state
    inputs = torch.cat([before, x], dim=1)  # [B, K-1+T, D]
    dinputs = torch.zeros_like(inputs)
    incoming = through_state(call)
    if incoming is not None:
        dinputs[:, time:] += incoming
    dweight = torch.zeros_like(weight)
    for k in range(taps):
        at = slice(taps - 1 - k, taps - 1 - k + time)
        here = dy if segment_pos is None or k == 0 else torch.where((k <= segment_pos)[..., None], dy, 0.0)
        dinputs[:, at] += weight[taps - 1 - k] * here
        dweight[taps - 1 - k] = (here * inputs[:, at]).sum((0, 1))
    dstate = None if state is None else dinputs[:, : taps - 1]
    return dinputs[:, taps - 1 :], dweight, None if bias is None else dy.sum((0, 1)), dstate


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs and standard normal gradients; that of the new state comes with a state."""
    inputs = forward.make_inputs(case, device, seed)
    del inputs["residual"]  # no part of the gradient
    draw = Draws(case, device, seed + 1)
    dy = draw.data(draw.normal(case["B"], case["T"], case["D"]))
    after = draw.data(draw.normal(case["N"], case["K"] - 1, case["D"])) if "state" in case.data else None
    return inputs | {"dy": dy, "dnew_state": after}


def tolerance(case: Case) -> Tolerance:
    """The forward's bounds for dx; sums over batch and time add theirs to the weights' gradients."""
    # A sum of n = B T independent terms grows like sqrt(n), and each of its partial sums i is rounded: u sqrt(i), in
    # all u n / sqrt(2), which is sqrt(n / 2) u of the sum. Sums in blocks stay below. Twice that in the norm, the
    # products' own rounding included; 8 times that for the largest deviation among the elements.
    one_way = forward.tolerance(case)
    unit = torch.finfo(accumulator(case.torch_dtype)).eps / 2
    summing = unit * (case["B"] * case["T"]) ** 0.5
    return Tolerance(one_way.rel_norm + 2 * summing, one_way.worst + 16 * summing)


OP = gradient_of(
    forward,
    summary="dx, dweight, dbias and dstate of temporal_conv1d",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "dweight": TensorSpec("K D", "parameter"),
        "dbias": TensorSpec("D", "parameter", optional=True),
        "dstate": TensorSpec("N K-1 D", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    check=forward.check,
)
