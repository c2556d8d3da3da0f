"""rg_lru_gated_bwd: the gradient of rg_lru_gated. The contract.

y is the forward output in the data's dtype; gates are recomputed. The equations are those of rg_lru_bwd between the
matrix products, with c in place of 8: dx is its direct part g m i, dz_i and dz_r are results, and so is

    da_param = sigmoid(a_param) sum(-c r d log a)        summed in float32, in an order that does not vary
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels import pieces
from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.rg_lru.op import DECAY
from griffin_kernels.ops.rg_lru_bwd.op import to_gates
from griffin_kernels.ops.rg_lru_gated import op as forward
from griffin_kernels.ops.rg_lru_gated_bwd.cost import cost as cost


class Call(NamedTuple):
    """The arguments of rg_lru_gated_bwd. dy, dh_last: what reaches y and h_last. y: as rg_lru_gated gave it."""

    dy: Sequence
    dh_last: State
    x: Sequence
    input_gate: Sequence
    recurrence_gate: Sequence
    a_param: Channels
    y: Sequence
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    c: float = DECAY


def reference(call: Call) -> tuple[Tensor | None, ...]:
    """dx, the gradients of both pre-activations, da_param and dh0."""
    i, r = torch.sigmoid(call.input_gate), torch.sigmoid(call.recurrence_gate)
    return to_gates(call, i, r, call.c)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, the forward output by the reference in the accumulator's dtype, and random gradients."""
    inputs = forward.make_inputs(case, device, seed)
    y, h_last = pieces.reference(forward.OP, inputs, accumulator(case.torch_dtype))
    assert y is not None and h_last is not None
    draw = Draws(case, device, seed + 1)
    dy = draw.data(draw.normal(*y.shape))
    dh_last = draw.wide(draw.normal(*h_last.shape)) if "h0" in case.data else None
    return inputs | {"dy": dy, "dh_last": dh_last, "y": draw.data(y)}


def tolerance(case: Case) -> Tolerance:
    """Twice the forward's bounds for single elements, one and a half times those of the norm, as rg_lru_bwd."""
    # a da and 2 a^2 dv partly cancel in d log a, which doubles their relative errors. y, rounded once, stands for h.
    one_way = forward.tolerance(case)
    return Tolerance(rel_norm=1.5 * one_way.rel_norm, worst=2 * one_way.worst)


OP = gradient_of(
    forward,
    summary="dx, the gradients of both gates' pre-activations, da_param and dh0 of rg_lru_gated",
    call=Call,
    outputs={
        "dx": TensorSpec("B T D"),
        "dinput_gate": TensorSpec("B T D"),
        "drecurrence_gate": TensorSpec("B T D"),
        "da_param": TensorSpec("D", "parameter"),
        "dh0": TensorSpec("N D", "accumulator", optional=True),
    },
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
)
