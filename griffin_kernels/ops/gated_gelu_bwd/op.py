"""gated_gelu_bwd: the gradient of gated_gelu. The contract.

    dvalue = dout gelu(gate),   dgate = dout value gelu'(gate)

gelu and its slope are done again: gate and value are all that a forward pass keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, roundings
from griffin_kernels.ops._activation import gelu_and_slope
from griffin_kernels.ops._arguments import Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.gated_gelu import op as forward
from griffin_kernels.ops.gated_gelu_bwd.cost import cost


class Call(NamedTuple):
    """The arguments of gated_gelu_bwd. dout: what reaches out."""

    dout: Sequence
    gate: Sequence
    value: Sequence


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file."""
    made, slope = gelu_and_slope(call.gate)
    return call.dout * call.value * slope, call.dout * made


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs and a standard normal gradient."""
    draw = Draws(case, device, seed + 1)
    dout = draw.placed(draw.normal(case["B"], case["T"], case["D"]))
    return forward.make_inputs(case, device, seed) | {"dout": dout}


def tolerance(case: Case) -> Tolerance:
    """The forward's bounds, and what cancels in the slope."""
    # gelu' = s + s (1 - s) w. At z = 4, where w = z dw/dz is 20, s is right to a unit or two and 1 - s is all but
    # lost: 40 units of a slope of 1. So it is beyond z = 3 only, in a gate of a thousand: 2 units in the norm.
    unit, rounding = roundings(case.torch_dtype)
    return Tolerance(rel_norm=12 * unit + rounding, worst=64 * unit + 2 * rounding)


OP = gradient_of(
    forward,
    summary="dgate and dvalue of gated_gelu, which keeps gate and value alone",
    call=Call,
    outputs={"dgate": TensorSpec("B T D"), "dvalue": TensorSpec("B T D")},
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
)
