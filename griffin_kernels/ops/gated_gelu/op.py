"""gated_gelu: what lies between the linear layers of Griffin's gated MLP. The contract.

    out = gelu(gate) value          gelu in its tanh form, ops/_gelu.py

Every element is by itself: rows and steps tell only where it is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops._arguments import Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.gated_gelu.cost import cost, make_case

FAR = 24.0
"""How much larger gates are in cases with ``far``: gelu is 0 there or the identity, and a cube overflows float16."""


class Call(NamedTuple):
    """The arguments of gated_gelu; see ``functional/_feedforward.py``."""

    gate: Sequence
    value: Sequence


def reference(call: Call) -> tuple[Tensor]:
    """The formula at the top of this file."""
    return (torch.nn.functional.gelu(call.gate, approximate="tanh") * call.value,)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal gates and values."""
    draw, shape = Draws(case, device, seed), (case["B"], case["T"], case["D"])
    gate = draw.normal(*shape) * (FAR if "far" in case.data else 1.0)
    return {"gate": draw.placed(gate), "value": draw.placed(draw.normal(*shape))}


def tolerance(case: Case) -> Tolerance:
    """Bounds that follow from rounding."""
    # gelu is off by 8 units of the accumulator: an exponential and a reciprocal in hardware are right to 2^-22 each.
    # Products are 2 more. The output adds its own rounding, relative to the element: 2^-9 bf16, 2^-12 fp16.
    unit, rounding = roundings(case.torch_dtype)
    return Tolerance(rel_norm=8 * unit + rounding, worst=20 * unit + 2 * rounding)


def case_of(call: Any, op: str = "gated_gelu") -> Case:
    """The case that a real call is, of gated_gelu or of its gradient."""
    batch, time, width = call.gate.shape
    return make_case(batch, time, width, dtype_name(call.gate.dtype), op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by gated_gelu, its packed form and their gradients."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 5, 24, tag="smoke", dtype=dtype) for dtype in DTYPE_BYTES]
    edge = [
        case(1, 1, 1, tag="edge"),
        case(3, 2, 70, "bfloat16", tag="edge", data=("strided",)),
        case(1, 7, 131, tag="edge", data=("strided", "far")),
        case(2, 3, 257, "float16", tag="edge", data=("far",)),
    ]
    rg2b, rg9b = "RecurrentGemma-2B, mlp_width 7680", "RecurrentGemma-9B, mlp_width 12288"
    paper = "Hawk and Griffin 1.3B, mlp_width 6144, trained at T 2048"
    small = "Hawk and Griffin 100M, mlp_width 2304, a prompt"
    backward = op.endswith("_bwd")
    bench = [
        case(1, 1024, 2304, where="cpu", source=small),
        case(1, 2048, 7680, where="cpu", source=rg2b, thorough=True),
        case(1, 2048, 7680, "bfloat16", where="cpu", source=rg2b, thorough=True),
        case(8, 2048, 7680, "bfloat16", where="gpu", source=rg2b),
        case(8, 2048, 6144, "bfloat16", where="gpu", source=paper, thorough=True),
        case(8, 2048, 12288, "bfloat16", where="gpu", source=rg9b, thorough=True),
        case(8, 2048, 7680, where="gpu", source=rg2b, thorough=True),
    ]
    if not backward:  # decoding
        bench += [
            case(1, 1, 7680, where="cpu", source=f"{rg2b}, a token"),
            case(16, 1, 2304, where="cpu", source="Hawk and Griffin 100M, mlp_width 2304, 16 tokens", thorough=True),
            case(1, 1, 7680, "bfloat16", where="gpu", source=f"{rg2b}, a token"),
            case(64, 1, 7680, "bfloat16", where="gpu", source=f"{rg2b}, 64 tokens", thorough=True),
            case(16, 1, 12288, "bfloat16", where="gpu", source=f"{rg9b}, 16 tokens", thorough=True),
            case(1, 2048, 7680, "bfloat16", where="gpu", source=f"{rg2b}, a prompt", thorough=True),
        ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="gated_gelu",
    summary="gelu(gate) * value in the tanh form: all between a gated MLP's linear layers",
    call=Call,
    outputs={"out": TensorSpec("B T D")},
    reference=reference,
    cases=cases("gated_gelu"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
)
