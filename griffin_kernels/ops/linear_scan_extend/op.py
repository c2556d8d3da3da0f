"""linear_scan_extend: linear_scan on sequences whose states are rows of a pool, in place. The contract.

    h_{-1} = states[slots[n]];   h = linear_scan(x, a, h0=h_{-1});   states[keep[t]] = h_t        of every sequence n

``ops/_keep.py`` says what slots and keep mean. A sequence without a state starts from zeros, and a reset counts the
state before its step as 0, that from the pool too. Gates are linear_scan's, their logarithms and the convex form
included. Kept states are float32 (float64 for float64 data), h before it is rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _keep
from griffin_kernels.ops._arguments import Gates, Keep, Offsets, Resets, Sequence, Starts, States
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.linear_scan_extend.cost import FLAGS, MINOR_FLAGS, cost, make_case


class Call(NamedTuple):
    """The arguments of linear_scan_extend; see ``functional/_extend.py``."""

    x: Sequence
    a: Gates
    states: States
    slots: Starts
    keep: Keep
    reset: Resets = None
    cu_seqlens: Offsets = None
    log_a: bool = False
    convex: bool = False


def continued(call: Call, h0: Tensor | None) -> scan.Call:
    """The linear_scan of sequences that start from h0 [N,D]."""
    return scan.Call(call.x, call.a, h0, call.reset, call.cu_seqlens, log_a=call.log_a, convex=call.convex)


def gathered(call: Call) -> scan.Call:
    """That of a call, its states gathered."""
    return continued(call, _keep.initial(call.states, call.slots))


def check(call: Call) -> None:
    """What the tensor specs cannot express: those of linear_scan, and rows of the pool."""
    scan.check_scan(continued(call, None), "linear_scan_extend")
    _keep.check(call, states=call.states)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """h [B,T,D] and the states [P,D] afterwards."""
    h, _, _ = scan.reference(gathered(call))
    return h, _keep.updated(call.states, call.keep, h)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of linear_scan; a pool of standard normal states; ``_keep.make`` says which are read, and written."""
    draw, full = Draws(case, device, seed + 3), scan.make_inputs(case, device, seed)
    slots, keep = _keep.make(case, full["cu_seqlens"], draw.generator)
    return {
        "x": full["x"],
        "a": full["a"],
        "states": draw.pool(case["P"], case["D"]),
        "slots": slots.to(device),
        "keep": keep.to(device),
        **{name: full[name] for name in ("reset", "cu_seqlens", "log_a", "convex")},
    }


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    of_scan = scan.case_of(continued(call, None))
    batch, time, width = call.x.shape
    flags, pool = tuple(flag for flag in of_scan.flags if flag in FLAGS), call.states.shape[0]
    return make_case(batch, time, width, dtype_name(call.x.dtype), flags, rows=of_scan["N"], pool=pool, tag="call")


def tolerance(case: Case) -> Tolerance:
    """That of linear_scan: a kept state is an h that is not rounded."""
    return scan.tolerance(case)


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 37, 24, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    some, every = ("checkpoints",), ("every_token",)
    edge = [
        make_case(1, 1, 1, tag="edge"),
        make_case(1, 4, 40, pool=6, tag="edge", data=every),
        make_case(4, 3, 48, "bfloat16", pool=15, tag="edge", data=every),
        make_case(2, 67, 131, pool=40, tag="edge", data=("strided", *some)),
        make_case(3, 50, 24, flags=("reset",), pool=9, tag="edge", data=("fresh", "zeros")),
        make_case(2, 50, 40, "bfloat16", ("reset", "log", "wide"), pool=25, tag="edge", data=("strided", *some)),
        make_case(3, 50, 33, flags=("constant",), pool=30, tag="edge", data=("by_row", "signed", *some)),
        make_case(
            1, 97, 40, flags=("packed", "log", "convex"), rows=4, pool=40, tag="edge", data=("empty_sequence", *some)
        ),
        make_case(1, 97, 40, "bfloat16", ("packed",), rows=5, pool=7, tag="edge", data=("empty_sequence",)),
        make_case(1, 23, 24, flags=("packed", "convex"), rows=7, pool=31, tag="edge", data=("signed", *every)),
        make_case(1, 60, 24, "float64", ("reset", "packed", "log", "constant"), rows=3, pool=20, tag="edge", data=some),
    ]
    rg2b = "RecurrentGemma-2B, lru_width 2560"
    verify, prompts = f"{rg2b}, 4 drafted tokens", f"{rg2b}, 16 prompts packed"
    bench = [
        make_case(1, 4, 2560, pool=5, where="cpu", source=verify, data=every),
        make_case(1, 2048, 2560, pool=16, where="cpu", source=f"{rg2b}, a prompt", thorough=True),
        make_case(16, 4, 2560, "bfloat16", pool=80, where="gpu", source=verify, data=every),
        make_case(1, 8192, 2560, "bfloat16", ("packed",), rows=16, pool=64, where="gpu", source=prompts, thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="linear_scan_extend",
    summary="linear_scan on sequences whose states are rows of a pool, read and written in place",
    call=Call,
    outputs={"h": TensorSpec("B T D"), "states": TensorSpec("P D", "accumulator")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    free_dims=("N", "P"),
    minor_flags=MINOR_FLAGS,
    check=check,
    in_place=("states",),
)
