"""rms_norm_bwd: the gradient of rms_norm. The contract.

x is what was normed: s where the forward pass had a residual. With r = 1 / sqrt(mean(x^2) + eps), done again, and
g = dy (weight_offset + weight):

    dx = r (g - x r^2 mean(g x)) + ds                 of s, and so of x and of the residual alike
    dweight = sum over rows of dy r x                 summed in float32, in an order that does not vary

Nothing is kept for it but x in its own dtype: every row is read whole here anyway, so that its root costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Inputs, TensorSpec, Tolerance, accumulator
from griffin_kernels.ops._arguments import Channels, OptionalSequence, Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops._variants import gradient_of
from griffin_kernels.ops.rms_norm import op as forward
from griffin_kernels.ops.rms_norm_bwd.cost import cost as cost


class Call(NamedTuple):
    """The arguments of rms_norm_bwd. dy, ds: what reaches y and s; ds is None where nothing does."""

    dy: Sequence
    ds: OptionalSequence
    x: Sequence
    weight: Channels
    eps: float = forward.EPS
    weight_offset: float = 0.0


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file."""
    dy, ds, x, weight, eps, offset = call
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    g = dy * (offset + weight)
    dx = r * (g - x * r.square() * (g * x).mean(-1, keepdim=True))
    return dx if ds is None else dx + ds, (dy * r * x).sum((0, 1))


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Forward inputs, whose sum is what was normed, and standard normal gradients; that of s comes with a residual."""
    inputs = forward.make_inputs(case, device, seed)
    draw = Draws(case, device, seed + 1)
    shape = case["B"], case["T"], case["D"]
    del inputs["residual"]
    ds = draw.placed(draw.normal(*shape)) if "residual" in case.flags else None
    return inputs | {"dy": draw.placed(draw.normal(*shape)), "ds": ds}


def tolerance(case: Case) -> Tolerance:
    """Twice the forward's bounds for dx; sums over rows add theirs to the weights' gradient."""
    # What dx loses against g, the part along x, leaves most of it: sqrt(1 - 1/D), or with one channel half of it at an
    # eps as large as the mean square. A sum of n = B T independent terms has errors of sqrt(n) u, as in
    # temporal_conv1d_bwd; the terms have those of their row's r.
    one_way = forward.tolerance(case)
    unit = torch.finfo(accumulator(case.torch_dtype)).eps / 2
    summing = unit * (case["B"] * case["T"]) ** 0.5
    return Tolerance(2 * one_way.rel_norm + 2 * summing, 2 * one_way.worst + 16 * summing)


OP = gradient_of(
    forward,
    summary="dx and dweight of rms_norm",
    call=Call,
    outputs={"dx": TensorSpec("B T D"), "dweight": TensorSpec("D", "parameter")},
    reference=reference,
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    check=forward.check,
)
