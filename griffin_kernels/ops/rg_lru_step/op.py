"""rg_lru_step: one token of the gated linear recurrence, its state updated in place. The contract.

    i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r),  a = exp(-8 softplus(a_param) r)
    h = a h + sqrt(1 - a^2) i x,   y = h

What rg_lru gives for T = 1 with h for h0. Where positions is 0 a document begins: h counts as 0 and the multiplier as
1; without positions every row continues. Slots are explained in ``ops/_slots.py``. h is float32 (float64 for float64
data) whatever x is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import ROWS, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _slots
from griffin_kernels.ops.rg_lru import cost as lru_cost
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_step.cost import cost, make_case


def check(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> None:
    """What the tensor specs cannot express: blocks fill the width, and every row has a state."""
    lru.check_blocks(x, input_gate_bias)
    _slots.check(x.shape[0], slots, h=h)


def reference(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y [B,D] and the states [P,D] afterwards."""
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    segment_pos = None if positions is None else positions[:, None]
    y, new = lru.reference(x[:, None], *weights, _slots.rows(h, slots), segment_pos, None)
    return _slots.silence(y[:, 0], slots), _slots.updated(h, slots, new)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of rg_lru for one step; positions from 0 on, so that one document has just begun."""
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    full = lru.make_inputs(
        lru_cost.make_case(case["B"], 1, case["D"], case["H"], case.dtype, data=("h0", *case.data)), device, seed
    )
    slots = _slots.make(case["B"], case["P"], generator).to(device) if "slots" in case.data else None
    positions = torch.arange(case["B"], device=device, dtype=torch.int64) if "positions" in case.data else None
    h = _slots.spread(full["h0"], case["P"], slots, generator)
    weights = {name: full[name] for name in WEIGHTS}
    return {"x": full["x"][:, 0], **weights, "h": h, "positions": positions, "slots": slots}


def tolerance(case: Case) -> Tolerance:
    """That of rg_lru for one step."""
    return lru.tolerance(lru_cost.make_case(case["B"], 1, case["D"], case["H"], case.dtype))


def case_of(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> Case:
    """The case that a real call is."""
    batch, width = x.shape
    return make_case(batch, width, input_gate_bias.shape[0], dtype_name(x.dtype), pool=h.shape[0], tag="call")


WEIGHTS = (
    "a_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrence_gate_weight",
    "recurrence_gate_bias",
)
"""Parameters of the gates, in the order of the arguments."""


def cases() -> tuple[Case, ...]:
    both = ("positions", "slots")
    smoke = [make_case(2, 24, 3, dtype, tag="smoke") for dtype in ("float32", "bfloat16", "float16", "float64")]
    edge = [
        make_case(1, 1, 1, tag="edge"),
        make_case(3, 131, 1, tag="edge", data=("positions", "strided")),
        make_case(5, 40, 4, pool=9, tag="edge", data=both),
        make_case(18, 48, 3, "bfloat16", pool=20, tag="edge", data=both),
        make_case(3, 24, 24, tag="edge", data=("near_one", "positions")),
        make_case(4, 40, 4, "float64", pool=11, tag="edge", data=("slots",)),
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
    inputs={
        "x": TensorSpec("B D"),
        **{name: lru.INPUTS[name] for name in WEIGHTS},
        "h": TensorSpec("P D", "accumulator"),
        "positions": TensorSpec("B", "int64", optional=True, least=0),
        "slots": TensorSpec("B", "int64", optional=True),
    },
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
