"""rms_norm: every row scaled to a mean square of 1, after a residual was added. The contract.

    s = x + residual                                  rounded to x's dtype; s is x without a residual
    y = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)

The mean is over the D channels of a row. All of y is float32 (float64 for float64 data), of s as it was rounded, and is
rounded once: Gemma's order, in which the weight multiplies before that. s is None without a residual.

RecurrentGemma keeps weights as offsets from 1: weight_offset is 1 there, and 0 in torch.nn.RMSNorm.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops._arguments import Channels, OptionalSequence, Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.rms_norm.cost import MINOR_FLAGS, cost, make_case

EPS = 1e-6
"""RecurrentGemma's, and that of cases without ``eps``."""

LARGE_EPS = 0.5
"""The eps of cases whose data has ``eps``: as large as the mean square."""


class Call(NamedTuple):
    """The arguments of rms_norm; see ``functional/_norms.py``."""

    x: Sequence
    weight: Channels
    residual: OptionalSequence = None
    eps: float = EPS
    weight_offset: float = 0.0


def check(call: Any) -> None:
    """What the tensor specs cannot express, of rms_norm and of its backward: a channel, an eps, a finite offset."""
    if call.x.shape[2] < 1:
        raise errors.ShapeError(f"x has shape {list(call.x.shape)}, expected [B, T, D] with D >= 1 channels")
    if not (math.isfinite(call.eps) and call.eps >= 0):
        raise errors.ArgumentError(f"eps is {call.eps}, expected a finite number from 0 up")
    if not math.isfinite(call.weight_offset):
        raise errors.ArgumentError(f"weight_offset is {call.weight_offset}, expected a finite number")


def reference(call: Call) -> tuple[Tensor, Tensor | None]:
    """The equations at the top of this file. Differentiable."""
    x, weight, residual, eps, offset = call
    s = x if residual is None else x + residual
    scale = torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
    return s * scale * (offset + weight), None if residual is None else s


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x and residual, and weights that make factors near 1."""
    draw = Draws(case, device, seed)
    batch, time, width = (case[name] for name in ("B", "T", "D"))
    offset = 1.0 if "offset" in case.data else 0.0
    return {
        "x": draw.placed(draw.normal(batch, time, width)),
        "weight": draw.parameter(draw.normal(width) * 0.3 + (1.0 - offset)),
        "residual": draw.placed(draw.normal(batch, time, width)) if "residual" in case.flags else None,
        "eps": LARGE_EPS if "eps" in case.data else EPS,
        "weight_offset": offset,
    }


def tolerance(case: Case) -> Tolerance:
    """Bounds that follow from rounding, with a factor for how errors add up."""
    # D squares are summed, each rounded and each partial sum too: at most sqrt(D) u of a sum of as many positive terms
    # in the norm, and half of that after the root. Root, reciprocal, weight and two products add 5 u, hardware's own
    # root and reciprocal 2 u. A row's factor is wrong in all of its elements alike; the worst row has four times that.
    # The output adds its own rounding. With a residual s is rounded first, and y is of what was rounded.
    unit, rounding = roundings(case.torch_dtype)
    summed = unit * (7 + case["D"] ** 0.5)
    once = 2 if "residual" in case.flags else 1
    return Tolerance(rel_norm=summed + once * rounding, worst=4 * summed + 2 * once * rounding)


def case_of(call: Any, op: str = "rms_norm") -> Case:
    """The case that a real call is, of rms_norm or of its backward, whose ``ds`` stands for the residual."""
    batch, time, width = call.x.shape
    added = call.residual if op == "rms_norm" else call.ds
    flags = () if added is None else ("residual",)
    return make_case(batch, time, width, dtype_name(call.x.dtype), flags, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by rms_norm and its backward."""
    case = functools.partial(make_case, op=op)
    added: dict[str, Any] = {"flags": ("residual",)}
    smoke = [case(2, 37, 24, tag="smoke", dtype=d) for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, tag="smoke", data=("offset",), **added))
    smoke.append(case(2, 37, 24, tag="smoke", dtype="bfloat16", data=("wide_parameters", "offset"), **added))
    edge = [
        case(1, 1, 1, tag="edge", data=("eps",)),
        case(2, 5, 1, tag="edge", data=("eps",), **added),
        case(3, 7, 3, tag="edge", data=("offset",), dtype="bfloat16"),
        case(2, 19, 131, tag="edge", data=("strided",)),
        case(2, 19, 131, tag="edge", data=("strided", "offset"), dtype="bfloat16", **added),
        case(3, 17, 70, tag="edge", dtype="float16", data=("wide_parameters",), **added),
        case(1, 67, 200, tag="edge", dtype="float64", data=("offset", "strided"), **added),
        case(1, 3, 2560, tag="edge", dtype="bfloat16", data=("offset",), **added),
        case(1, 2, 4097, tag="edge", **added),
        case(1, 2, 16384, tag="edge", dtype="bfloat16", data=("offset",), **added),
        case(1, 2, 16383, tag="edge", data=("offset",)),
    ]
    rg2b, rg9b = "RecurrentGemma-2B, width 2560", "RecurrentGemma-9B, width 4096"
    paper = "Griffin 100M of the paper, width 768"
    bench = [
        case(1, 2048, 2560, where="cpu", source=f"{rg2b}, a prompt or a training step", **added),
        case(1, 2048, 2560, where="cpu", dtype="bfloat16", source=rg2b, **added, thorough=True),
        case(1, 2048, 4096, where="cpu", source=rg9b, thorough=True),
        case(4, 2048, 768, where="cpu", source=f"{paper}, a training step", **added, thorough=True),
    ]
    if op == "rms_norm":
        bench += [
            case(1, 1, 2560, where="cpu", source=f"{rg2b}, one token", **added),
            case(1, 1, 2560, where="cpu", dtype="bfloat16", source=f"{rg2b}, one token", **added, thorough=True),
            case(64, 1, 2560, where="cpu", source=f"{rg2b}, one token of 64 rows", **added, thorough=True),
        ]
        for batch in (1, 8, 64):
            source = f"{rg2b}, one token of {batch} rows" if batch > 1 else f"{rg2b}, one token"
            bench.append(case(batch, 1, 2560, where="gpu", dtype="bfloat16", source=source, **added))
        bench.append(case(64, 1, 4096, where="gpu", dtype="bfloat16", source=f"{rg9b}, 64 rows", thorough=True))
    bench += [
        case(1, 8192, 2560, where="gpu", dtype="bfloat16", source=f"{rg2b}, a prompt", **added, thorough=True),
        case(8, 2048, 2560, where="gpu", dtype="bfloat16", source=f"{rg2b}, a training step", **added),
        case(8, 2048, 2560, where="gpu", dtype="bfloat16", source=f"{rg2b}, a first norm", thorough=True),
        case(8, 2048, 4096, where="gpu", dtype="bfloat16", source=rg9b, **added, thorough=True),
        case(8, 2048, 2560, where="gpu", source=rg2b, **added, thorough=True),
        case(8, 2048, 768, where="gpu", dtype="bfloat16", source=f"{paper}, training", **added, thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="rms_norm",
    summary="y = s / sqrt(mean(s^2) + eps) * (weight_offset + weight) of s = x + residual, per row",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "s": TensorSpec("B T D", optional=True, of="residual")},
    reference=reference,
    cases=cases("rms_norm"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("T",)),
    minor_flags=MINOR_FLAGS,
    check=check,
)
