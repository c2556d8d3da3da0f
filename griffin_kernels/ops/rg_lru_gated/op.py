"""rg_lru_gated: the recurrence of the RG-LRU from its gates' pre-activations, however these were made. The contract.

    i = sigmoid(z_i),  r = sigmoid(z_r)                   z_i, z_r: input_gate, recurrence_gate
    log a = -c softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

Resets, fresh sequences and the clipped derivative of the square root are rg_lru's, whose equations these are after its
gate products: see ops/rg_lru/op.py. Here the gates may come from dense layers, from other inputs than x, from a policy.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, accumulator, dtype_name
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.rg_lru import op as rg_lru
from griffin_kernels.ops.rg_lru_gated.cost import cost, make_case

OTHER_DECAY = 2.5
"""The c of cases whose data has ``c``."""


class Call(NamedTuple):
    """The arguments of rg_lru_gated; see ``functional/_recurrent.py``."""

    x: Sequence
    input_gate: Sequence
    recurrence_gate: Sequence
    a_param: Channels
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    c: float = rg_lru.DECAY


def check(call: Any) -> None:
    """What the tensor specs cannot express: a decay, packed sequences that fill time."""
    if not (math.isfinite(call.c) and call.c > 0):
        raise errors.ArgumentError(f"c is {call.c}, expected a finite number above 0")
    if call.cu_seqlens is not None:
        scan.check_cu_seqlens(call.cu_seqlens, batch=call.x.shape[0], total=call.x.shape[1])


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file. Returns y [B,T,D] and h_last [B or N, D]. Differentiable."""
    i, r = torch.sigmoid(call.input_gate), torch.sigmoid(call.recurrence_gate)
    return rg_lru.recurrence(call, i, r, call.c)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x and pre-activations; the rest as rg_lru's, a_param too."""
    draw = Draws(case, device, seed)
    batch, time, width, rows = (case[name] for name in ("B", "T", "D", "N"))
    return {
        "x": draw.placed(draw.normal(batch, time, width)),
        "input_gate": draw.placed(draw.normal(batch, time, width)),
        "recurrence_gate": draw.placed(draw.normal(batch, time, width)),
        "a_param": draw.parameter(rg_lru.draw_a_param(draw)),
        "h0": draw.wide(draw.normal(rows, width)) if "h0" in case.data else None,
        "cu_seqlens": draw.offsets() if "packed" in case.flags else None,
        "segment_pos": draw.positions(time) if "segmented" in case.flags else None,
        "c": OTHER_DECAY if "c" in case.data else rg_lru.DECAY,
    }


def tolerance(case: Case) -> Tolerance:
    """The scan's own bounds, plus those of the elementwise steps before it."""
    # Pre-activations are given: no product's rounding reaches the gates. Between them and the scan lie some eight
    # elementwise steps. sigmoid and exp of the fused forms are right to two units each; as in rg_lru the error of log a
    # enters the norm twice, and a single element up to 16 times.
    unit = torch.finfo(accumulator(case.torch_dtype)).eps / 2
    one_way = scan.tolerance(case)
    return Tolerance(one_way.rel_norm + (2 * 4 + 8) * unit, one_way.worst + (16 * 4 + 8) * unit)


def case_of(call: Any, op: str = "rg_lru_gated") -> Case:
    """The case that a real call is, of rg_lru_gated or of its backward."""
    (batch, time, width), dtype = call.x.shape, dtype_name(call.x.dtype)
    rows = scan.rows_of(batch, call.cu_seqlens)
    return make_case(batch, time, width, dtype, rg_lru.flags_of(call), rows=rows, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by rg_lru_gated and its backward."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 24, dtype=d, tag="smoke") for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, dtype="bfloat16", tag="smoke", data=("wide_parameters", "c")))
    edge = [
        case(1, 1, 1, tag="edge", data=("h0",)),
        case(2, 67, 131, tag="edge", data=("strided", "h0", "c")),
        case(3, 50, 24, tag="edge", data=("near_one", "h0")),
        case(2, 67, 24, tag="edge", flags=("segmented",), data=("h0",)),
        case(2, 50, 40, tag="edge", flags=("segmented",), dtype="bfloat16", data=("strided",)),
        case(1, 97, 40, rows=4, tag="edge", flags=("packed",)),
        case(1, 97, 40, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence", "c")),
        case(1, 97, 40, rows=3, tag="edge", flags=("segmented", "packed"), data=("h0",), dtype="float16"),
    ]
    hawk = "Hawk with dense gates, as hawk-pytorch and lrnnx have them; D_RNN 2560 of the paper, T 2048"
    bench = [
        case(1, 2048, 2560, where="cpu", source=hawk),
        case(1, 2048, 2560, where="cpu", dtype="bfloat16", source=hawk, thorough=True),
        case(
            8, 256, 1024, where="cpu", flags=("segmented",), source="episodes of a policy, 8 at a time", thorough=True
        ),
        case(8, 2048, 2560, where="gpu", dtype="bfloat16", source=hawk),
        case(1, 8192, 2560, where="gpu", dtype="bfloat16", source=hawk, thorough=True),
        case(8, 2048, 2560, where="gpu", dtype="float32", source=hawk, thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="rg_lru_gated",
    summary="h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t from the gates' pre-activations",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "h_last": TensorSpec("N D", "accumulator")},
    reference=reference,
    cases=cases("rg_lru_gated"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    free_dims=("N",),
    together=("input_gate", "recurrence_gate"),
    check=check,
)
