"""rg_lru_bwd: the gradient of rg_lru. The contract.

y is the forward output in the data's dtype; gates are recomputed. With g_t the gradient that reaches h_t (the scan's
backward gives it, and da_t = g_t h_{t-1}), v = 1 - a^2, m = sqrt(v), and no gradient to a or m at a reset:

    dx = g m i + dz_i W_i^T + dz_r W_r^T
    dz_i = g m x i (1 - i)
    d log a = a da - 2 a^2 (g i x) min(1 / (2 m), 1000)
    dz_r = -8 softplus(a_param) r (1 - r) d log a,   da_param = sigmoid(a_param) sum(-8 r d log a)
    dW = sum of x^T dz,   db = sum of dz
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.linear_scan_bwd import op as scan_bwd
from griffin_kernels.ops.rg_lru import op as forward
from griffin_kernels.ops.rg_lru_bwd.cost import cost


class Call(NamedTuple):
    """The arguments of rg_lru_bwd. dy, dh_last: what reaches y and h_last. y: as rg_lru gave it."""

    dy: Sequence
    dh_last: State
    x: Sequence
    a_param: Channels
    input_gate_weight: forward.Weight
    input_gate_bias: forward.Bias
    recurrence_gate_weight: forward.Weight
    recurrence_gate_bias: forward.Bias
    y: Sequence
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None


def reference(call: Call) -> tuple[Tensor | None, ...]:
    """The equations at the top of this file, in their order."""
    blocks = call.x.reshape(*call.x.shape[:2], *call.input_gate_bias.shape)  # [B, T, H, n]
    direct, *dz, da_param, dh0 = to_gates(call, *forward.gates(call), forward.DECAY)
    dz_i, dz_r = (gradient.reshape(blocks.shape) for gradient in dz)
    through_gates = torch.einsum("bthj,hkj->bthk", dz_i, call.input_gate_weight)
    through_gates = through_gates + torch.einsum("bthj,hkj->bthk", dz_r, call.recurrence_gate_weight)
    return (
        direct + through_gates.flatten(2),
        da_param,
        torch.einsum("bthk,bthj->hkj", blocks, dz_i),
        dz_i.sum((0, 1)),
        torch.einsum("bthk,bthj->hkj", blocks, dz_r),
        dz_r.sum((0, 1)),
        dh0,
    )


def to_gates(call: Any, i: Tensor, r: Tensor, c: float) -> tuple[Any, ...]:
    """The part of dx that goes through no gate, dz_i, dz_r, da_param and dh0, by gates i and r [B,T,D].

    log a = -c softplus(a_param) r.
    """
    x = call.x
    softplus = torch.logaddexp(call.a_param, torch.zeros_like(call.a_param))
    log_a = -c * softplus * r
    a, v = torch.exp(log_a), -torch.expm1(2 * log_a)
    m = torch.sqrt(v)
    reset = forward.resets(call)
    if reset is not None:
        reset = reset.expand(x.shape[:2])
        m = torch.where(reset[..., None], 1.0, m)
    scanned = scan_bwd.Call(call.dy, call.dh_last, a, call.y, call.h0, reset, call.cu_seqlens)
    g, da, dh0 = scan_bwd.reference(scanned)
    dm = g * i * x
    # the published clipping, on v = 1 - a^2 as it is there
    dv = dm / torch.sqrt(torch.clamp(4 * v, min=1 / forward.MAX_SQRT_GRADIENT**2))
    dlog_a = a * da - 2 * a**2 * dv
    if reset is not None:
        dlog_a = torch.where(reset[..., None], 0.0, dlog_a)
    dz_i = g * m * x * i * (1 - i)
    dz_r = -c * softplus * dlog_a * r * (1 - r)
    da_param = torch.sigmoid(call.a_param) * (-c * r * dlog_a).sum((0, 1))
    return g * m * i, dz_i, dz_r, da_param, dh0


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, the forward output by the reference in the accumulator's dtype, and random gradients."""
    inputs = forward.make_inputs(case, device, seed)
    wide = accumulator(case.torch_dtype)
    y, h_last = pieces.reference(forward.OP, inputs, wide)
    assert y is not None and h_last is not None
    draw = Draws(case, device, seed + 1)
    dy = draw.data(draw.normal(*y.shape))
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    return inputs | {"dy": dy, "dh_last": dh_last, "y": draw.data(y)}


def tolerance(case: Case) -> Tolerance:
    """Twice the forward's gate term in the norm: more products, and dz rounded before the matrix products."""
    # a da and 2 a^2 dv partly cancel in d log a, which doubles their relative errors. An implementation may use its own
    # h in place of y, which has been rounded once. Sums over time average errors out, their inputs being independent.
    gate = forward.gate_rounding(case)
    one_way = forward.tolerance(case)
    return Tolerance(rel_norm=1.5 * one_way.rel_norm + 2 * gate, worst=2 * one_way.worst + 16 * gate)


OP = gradient_of(
    forward,
    summary="dx, the gradients of all gate parameters, and dh0 of rg_lru, gates recomputed",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        **{f"d{name}": forward.OP.inputs[name] for name in forward.GATES},
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
)
