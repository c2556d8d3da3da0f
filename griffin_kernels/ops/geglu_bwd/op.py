"""geglu_bwd: the gradient of geglu, one tensor that holds both halves. The contract.

    dx[..., 0, :] = dout value gelu'(gate),   dx[..., 1, :] = dout gelu(gate)

Autograd of two chunks writes both halves and then copies them together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, TensorSpec
from griffin_kernels.ops._arguments import Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.gated_gelu_bwd import op as apart
from griffin_kernels.ops.gated_gelu_bwd.cost import cost
from griffin_kernels.ops.geglu import op as forward


class Call(NamedTuple):
    """The arguments of geglu_bwd. dout: what reaches out."""

    dout: Sequence
    x: forward.Pairs


def halves(call: Call) -> apart.Call:
    """The call of gated_gelu_bwd that a call is, whose gate and value are views."""
    return apart.Call(call.dout, *forward.halves(call.x))


def reference(call: Call) -> tuple[Tensor]:
    """gated_gelu_bwd's of the halves, side by side."""
    return (torch.stack(apart.reference(halves(call)), dim=2),)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs and a standard normal gradient."""
    draw = Draws(case, device, seed + 1)
    dout = draw.placed(draw.normal(case["B"], case["T"], case["D"]))
    return forward.make_inputs(case, device, seed) | {"dout": dout}


OP = gradient_of(
    forward,
    summary="dx of geglu, both halves written where they belong",
    call=Call,
    outputs={"dx": TensorSpec("B T 2 D")},
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=apart.tolerance,
)
