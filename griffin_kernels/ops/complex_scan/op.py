"""complex_scan: linear_scan over complex numbers, each held as a pair of reals. The contract.

    h_t = a_t h_{t-1} + x_t        re h_t = re a re h - im a im h + re x,   im h_t = re a im h + im a re h + im x

The last dimension of every tensor is (real, imaginary), as ``torch.view_as_real`` gives it. A complex gate is the
matrix [[re, -im], [im, re]] of a block of two channels in block_diagonal_scan, of which half is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops._arguments import Offsets, Resets
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.complex_scan.cost import cost, make_case
from griffin_kernels.ops.linear_scan import op as plain
from griffin_kernels.ops.linear_scan import wild

Pairs = Annotated[Tensor, TensorSpec("B T D 2")]
"""A complex number of every step and channel."""

PairState = Annotated[Tensor | None, TensorSpec("N D 2", "state")]
"""A complex state before the first step, or the gradient of the last one."""


class Call(NamedTuple):
    """The arguments of complex_scan; see ``functional/_complex.py``."""

    x: Pairs
    a: Pairs
    h0: PairState = None
    reset: Resets = None
    cu_seqlens: Offsets = None
    reverse: bool = False


def product(p: Tensor, q: Tensor, conjugate: bool = False) -> Tensor:
    """Pairs p times pairs q; of the conjugate of p, if so."""
    a, b = p.unbind(-1)
    c, d = q.unbind(-1)
    b = -b if conjugate else b
    return torch.stack((a * c - b * d, a * d + b * c), dim=-1)


def flat(call: Any) -> Any:
    """A call of the scan or its gradient with numbers flat, two channels each, but for a [B,T,D,2]."""
    pairs = {name: getattr(call, name, None) for name in ("x", "dh", "dh_last", "h", "h0")}
    return call._replace(**{name: value.flatten(-2) for name, value in pairs.items() if value is not None})


def paired(flat_numbers: Tensor) -> Tensor:
    """[..., 2 D] as [..., D, 2]."""
    pairs: Tensor = flat_numbers.unflatten(-1, (flat_numbers.shape[-1] // 2, 2))
    return pairs


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one step at a time. Returns h [B,T,D,2] and h_last [B or N, D, 2]."""
    h, h_last = plain.recurrence(flat(call), by_pairs(product))
    return paired(h), paired(h_last)


def by_pairs(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A product of gates [B,D,2] and states [B,2D]."""
    return lambda a, state: multiply(a, state.reshape(a.shape)).reshape(state.shape)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x; a in the ring 0.9 <= |a| < 0.999 at any angle, or as the case's ``data`` says.

    On the unit ``circle`` |a| is 1 but for rounding. Gates that are ``wild`` are those of linear_scan, each turned by
    right angles, and so are the numbers that meet them: the states are those of linear_scan, turned.
    """
    draw = Draws(case, device, seed)
    shape = case["B"], case["T"], case["D"]
    x = draw.normal(*shape, 2)
    radius = (
        torch.ones(shape, dtype=torch.float32, device="cpu")
        if "circle" in case.data
        else draw.uniform(*shape) * 0.099 + 0.9
    )
    a = torch.view_as_real(torch.polar(radius, draw.uniform(*shape) * (2 * torch.pi)))
    if "zeros" in case.data:
        a = torch.where(draw.uniform(*shape, 1) < 0.2, 0.0, a)
    given = plain.states_and_flags(draw)
    if given["h0"] is not None:
        given["h0"] = draw.wide(draw.normal(case["N"], case["D"], 2))
    if "wild" in case.data:
        gates, values = wild.gates_and_inputs(case.torch_dtype, *shape, draw.generator)
        angles = turns(case)
        a = plain.in_time(case, turned(gates, angles[1:] - angles[:-1]))
        x = plain.in_time(case, turned(values, angles[1:]))
        if given["h0"] is not None:
            starts, _ = plain.visits(case, given["cu_seqlens"])
            initial = wild.initial(case.torch_dtype, case["T"], case["D"], starts)
            given["h0"] = draw.wide(turned(initial, angles[starts]))
    return {"x": draw.placed(x), "a": draw.placed(a)} | given


def turns(case: Case) -> Tensor:
    """int64 [T+1, D]: right angles by which wild states are turned before each step and after the last one."""
    steps = torch.arange(case["T"] + 1, dtype=torch.int64, device="cpu")
    return steps[:, None] * (1 + torch.arange(case["D"], dtype=torch.int64, device="cpu") % 3) % 4


def turned(reals: Tensor, angles: Tensor) -> Tensor:
    """Reals turned by right angles, as pairs; exact."""
    real, imaginary = (torch.tensor(part, dtype=reals.dtype, device="cpu") for part in ((1, 0, -1, 0), (0, 1, 0, -1)))
    return torch.stack((reals * real[angles % 4], reals * imaginary[angles % 4]), dim=-1)


def tolerance(case: Case) -> Tolerance:
    """The bounds of linear_scan, with the roundings that a complex product has."""
    # A complex product is off by at most sqrt(5) u |a| |h| in the accumulator's unit u (Brent, Percival, Zimmermann,
    # "Error bounds on complex floating-point multiplication", 2007), the sum with x by u |h|: 3.3 roundings a step,
    # where linear_scan has one. They add up alike. A part that is small beside the other has the errors of both, which
    # the worst element leaves eight times the room of the norm for. The output adds its own rounding, part by part.
    memory = min(case["T"], 1000) ** 0.5
    unit, rounding = roundings(case.torch_dtype)
    once = 4 * 3.3 * unit * memory
    return Tolerance(rel_norm=once + rounding, worst=8 * once + 2 * rounding)


def case_of(call: Any, op: str = "complex_scan") -> Case:
    """The case that a real call is, of complex_scan or of its backward."""
    batch, time, width, _ = call.a.shape
    rows = plain.rows_of(batch, call.cu_seqlens)
    return make_case(batch, time, width, dtype_name(call.a.dtype), plain.flags_of(call), rows=rows, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by complex_scan and its backward."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 12, dtype=d, tag="smoke") for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 12, tag="smoke", data=("h0",)))
    edge = [
        case(1, 1, 1, tag="edge", data=("h0",)),
        case(3, 130, 1, tag="edge", data=("h0", "circle")),
        case(2, 67, 71, tag="edge", data=("strided", "h0")),
        case(2, 67, 35, tag="edge", flags=("reset",), data=("h0", "zeros")),
        case(2, 50, 33, tag="edge", flags=("reset", "reverse"), data=("h0", "strided"), dtype="bfloat16"),
        case(1, 97, 20, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence")),
        case(1, 97, 19, rows=3, tag="edge", flags=("reset", "packed", "reverse"), data=("h0",), dtype="float16"),
        case(2, 70, 13, tag="edge", data=("h0", "wild")),
        case(1, 70, 13, rows=3, tag="edge", flags=("packed", "reverse"), data=("h0", "wild"), dtype="bfloat16"),
        case(2, 70, 13, tag="edge", flags=("reset",), data=("h0", "wild"), dtype="float16"),
    ]
    # the complex RG-LRU of Griffin's appendix B has half as many numbers as channels; no checkpoint of it is published
    hawk = "complex RG-LRU (arXiv 2402.19427, appendix B) at Hawk 1.3B's width 2560 and training length 2048"
    bench = [
        case(1, 2048, 1280, where="cpu", source=hawk),
        case(1, 2048, 1280, where="cpu", dtype="bfloat16", source=hawk, thorough=True),
        case(8, 2048, 1280, where="gpu", dtype="bfloat16", source=hawk),
        case(1, 2048, 1280, where="gpu", dtype="bfloat16", source=hawk, thorough=True),
        case(8, 2048, 1280, where="gpu", source=hawk, thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="complex_scan",
    summary="h_t = a_t h_{t-1} + x_t of complex numbers, as pairs of reals",
    call=Call,
    outputs={"h": TensorSpec("B T D 2"), "h_last": TensorSpec("N D 2", "accumulator")},
    reference=reference,
    cases=cases("complex_scan"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    free_dims=("N",),
    check=plain.check,
)
