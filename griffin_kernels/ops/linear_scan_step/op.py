"""linear_scan_step: one token of the gated linear recurrence, its state updated in place. The contract.

    h = a h + x,   y = h

What linear_scan gives for T = 1 with h for h0. With ``log_a`` the gates' logarithms are given, and a is their
exponential. Where ``reset`` is set a sequence begins: h = x, whatever was left there. Slots are explained in
``ops/_slots.py``. h is float32 (float64 for float64 data) whatever x is, and so may be a.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import (
    ROWS,
    BenchCase,
    Case,
    Inputs,
    Op,
    TensorSpec,
    Tolerance,
    dtype_name,
    roundings,
)
from griffin_kernels.ops import _slots
from griffin_kernels.ops._arguments import Slots, States, Token, Tokens
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan_step.cost import FLAGS, cost, make_case


class Call(NamedTuple):
    """The arguments of linear_scan_step; see ``functional/_scans.py``."""

    x: Tokens
    a: Annotated[Tensor, TensorSpec("B D", "parameter")]
    h: States
    reset: Annotated[Tensor | None, TensorSpec("B", "bool")] = None
    slots: Slots = None
    dst_slots: Slots = None
    log_a: bool = False
    pad_slot: int = -1
    out: Token = None


def check(call: Call) -> None:
    """What the tensor specs cannot express: every row has a state."""
    _slots.check(call, h=call.h)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """y [B,D] and the states [P,D] afterwards."""
    at, a = _slots.of(call, call.h.shape[0]), call.a.exp() if call.log_a else call.a
    new = a * _slots.rows(call.h, at.read) + call.x
    if call.reset is not None:
        new = torch.where(call.reset[:, None], call.x, new)
    return _slots.silence(new, at.read), _slots.updated(call.h, at.written, new)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x and states; a in [0.9, 0.999], or as the case's data says."""
    draw = Draws(case, device, seed)
    shape = case["B"], case["D"]
    x, a = draw.normal(*shape), draw.uniform(*shape) * 0.099 + 0.9
    if "signed" in case.data:
        a = (draw.uniform(*shape) - 0.5) * 8
    if "wild" in case.data:  # what exponentials must reach: from nothing to the edge of float32
        a = torch.exp(draw.uniform(*shape) * 240 - 160)
    log = "log" in case.flags
    a = a.log().clamp_min(-300.0) if log else a
    reset = (draw.uniform(case["B"]) < 0.4).to(device) if "reset" in case.data else None
    rows = draw.decoding()
    del rows["positions"]
    h = draw.pooled(draw.wide(draw.normal(*shape)), rows["slots"])
    return {
        "x": draw.placed(x, 2),
        "a": draw.placed(a, 2, parameter=True),
        "h": h,
        "reset": reset,
        **rows,
        "log_a": log,
    }


def tolerance(case: Case) -> Tolerance:
    """Bounds that follow from rounding, with a factor of four to spare."""
    # A product and a sum, each off by a unit u of the accumulator or less; the terms are up to some five times the rms
    # of the result in the worst element. The exponential has up to three units of its own, and one for each unit that
    # its argument's size in powers of two has: 0.15 for gates of 0.9, 128 for wild ones.
    unit, rounding = roundings(case.torch_dtype)
    count = 1
    if "log" in case.flags:
        count = 132 if "wild" in case.data else 5
    return Tolerance(rel_norm=4 * count * unit + rounding, worst=32 * count * unit + 2 * rounding)


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    batch, width = call.x.shape
    present = {"log": call.log_a, "wide": call.a.dtype != call.x.dtype}
    flags = tuple(flag for flag in FLAGS if present[flag])
    return make_case(batch, width, dtype_name(call.x.dtype), flags, pool=call.h.shape[0], tag="call")


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 24, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 24, "bfloat16", ("wide",), tag="smoke"))
    edge = [
        make_case(1, 1, tag="edge"),
        make_case(3, 131, tag="edge", data=("strided", "reset")),
        make_case(5, 40, pool=9, tag="edge", data=("signed", "reset", "slots")),
        make_case(6, 40, flags=("log",), pool=9, tag="edge", data=("reset", "slots")),
        make_case(4, 67, "float16", ("log", "wide"), tag="edge"),
        make_case(3, 70, flags=("log",), tag="edge", data=("wild",)),
        make_case(4, 40, "float64", ("log",), pool=11, tag="edge", data=("slots",)),
        make_case(9, 40, pool=12, tag="edge", data=("reset", "slots", "pad_zero", "paged")),
        make_case(5, 72, pool=12, tag="edge", data=("slots", "dst_slots")),
        make_case(8, 48, "bfloat16", pool=13, tag="edge", data=("slots", "pad_zero", "dst_slots", "paged")),
    ]
    wide, small = "RecurrentGemma-2B, lru_width 2560", "Hawk and Griffin 100M, lru_width 1024"
    bench: list[Any] = [make_case(batch, 1024, where="cpu", source=small, thorough=True) for batch in (1, 16)]
    for batch in (16, 128):
        bench.append(make_case(batch, 2560, where="cpu", source=wide, thorough=batch == 16))
        bench.append(make_case(batch, 2560, "bfloat16", ("wide",), where="gpu", source=wide, thorough=batch == 16))
    return (*smoke, *edge, *bench)


OP = Op(
    name="linear_scan_step",
    summary="one token of linear_scan, its state kept in place",
    call=Call,
    outputs={"y": TensorSpec("B D"), "h": TensorSpec("P D", "accumulator")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    free_dims=("P",),
    minor_flags=FLAGS,
    check=check,
    in_place=("h",),
)
