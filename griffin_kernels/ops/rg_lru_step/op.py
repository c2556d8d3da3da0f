"""rg_lru_step: one token of the gated linear recurrence, its state updated in place. The contract.

    i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r),  a = exp(-8 softplus(a_param) r)
    h = a h + sqrt(1 - a^2) i x,   y = h

What rg_lru gives for T = 1 with h for h0. Where positions is 0 a document begins: h counts as 0 and the multiplier as
1; without positions every row continues. Slots are explained in ``ops/_slots.py``. h is float32 (float64 for float64
data) whatever x is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _slots
from griffin_kernels.ops._arguments import Channels, Slots, States, Token, TokenPositions, Tokens
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.rg_lru import cost as lru_cost
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_step.cost import cost, make_case


class Call(NamedTuple):
    """The arguments of rg_lru_step; see ``functional/rg_lru_step.py``."""

    x: Tokens
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    h: States
    positions: TokenPositions = None
    slots: Slots = None
    dst_slots: Slots = None
    pad_slot: int = -1
    out: Token = None


def check(call: Call) -> None:
    """What the tensor specs cannot express: blocks fill the width, and every row has a state."""
    lru.check_blocks(call.x, call.input_gate_bias)
    _slots.check(call, h=call.h)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """y [B,D] and the states [P,D] afterwards."""
    at, segment_pos = _slots.of(call, call.h.shape[0]), None if call.positions is None else call.positions[:, None]
    h0 = _slots.rows(call.h, at.read)
    y, new = lru.reference(lru.Call(call.x[:, None], *lru.gates_of(call), h0, segment_pos))
    return _slots.silence(y[:, 0], at.read), _slots.updated(call.h, at.written, new)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of rg_lru for one step; positions from 0 on, so that one document has just begun."""
    draw = Draws(case, device, seed + 1)
    one = lru_cost.make_case(case["B"], 1, case["D"], case["H"], case.dtype, data=("h0", *case.data))
    full = lru.make_inputs(one, device, seed)
    rows = draw.decoding()
    h = draw.pooled(full["h0"], rows["slots"])
    return {"x": full["x"][:, 0], **{name: full[name] for name in lru.GATES}, "h": h, **rows}


def tolerance(case: Case) -> Tolerance:
    """That of rg_lru for one step."""
    return lru.tolerance(lru_cost.make_case(case["B"], 1, case["D"], case["H"], case.dtype))


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    (batch, width), blocks = call.x.shape, call.input_gate_bias.shape[0]
    return make_case(batch, width, blocks, dtype_name(call.x.dtype), pool=call.h.shape[0], tag="call")


def cases() -> tuple[BenchCase, ...]:
    both = ("positions", "slots")
    smoke = [make_case(2, 24, 3, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 24, 3, "bfloat16", tag="smoke", data=("wide_parameters",)))
    edge = [
        make_case(1, 1, 1, tag="edge"),
        make_case(3, 131, 1, tag="edge", data=("positions", "strided")),
        make_case(5, 40, 4, pool=9, tag="edge", data=both),
        make_case(18, 48, 3, "bfloat16", pool=20, tag="edge", data=both),
        make_case(3, 24, 24, tag="edge", data=("near_one", "positions")),
        make_case(4, 40, 4, "float64", pool=11, tag="edge", data=("slots",)),
        make_case(9, 40, 4, pool=12, tag="edge", data=(*both, "pad_zero", "paged")),
        make_case(5, 72, 1, pool=12, tag="edge", data=(*both, "dst_slots")),
        make_case(8, 48, 3, "bfloat16", pool=13, tag="edge", data=("slots", "pad_zero", "dst_slots", "paged")),
    ]
    rg2b, small = "RecurrentGemma-2B, 10 blocks of 256", "Hawk and Griffin 100M, 16 blocks of 64"
    decode: dict[str, Any] = {"data": ("positions",)}
    bench = [make_case(batch, 1024, 16, where="cpu", source=small, thorough=True, **decode) for batch in (1, 16)]
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        for batch in (1, 16):
            slow = where == "cpu" and batch == 1
            bench.append(make_case(batch, 2560, 10, dtype, where=where, source=rg2b, thorough=slow, **decode))
    bench.append(make_case(128, 2560, 10, "bfloat16", where="gpu", source=rg2b, **decode))
    return (*smoke, *edge, *bench)


OP = Op(
    name="rg_lru_step",
    summary="one token of rg_lru, its state kept in place",
    call=Call,
    outputs={"y": TensorSpec("B D"), "h": TensorSpec("P D", "accumulator")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    free_dims=("n", "P"),
    check=check,
    in_place=("h",),
)
