"""temporal_conv1d_step: one token of the causal convolution, its state updated in place. The contract.

    y = act(bias + weight[K-1] x + sum_k weight[K-1-k] state[K-1-k]),   k = 1 .. K-1
    state = (state[1:], x)

What temporal_conv1d gives for T = 1. With positions, tap k counts only where k <= positions[b], and the rows that
precede the token's document become zeros in the state. Slots are explained in ``ops/_slots.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, dtype_name
from griffin_kernels.ops import _activation, _slots
from griffin_kernels.ops._arguments import OptionalChannels, Slots, Token, TokenPositions, Tokens
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.temporal_conv1d import cost as conv_cost
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_step.cost import FLAGS, cost, make_case

States = Annotated[Tensor, TensorSpec("P K-1 D")]


class Call(NamedTuple):
    """The arguments of temporal_conv1d_step; see ``functional/temporal_conv1d_step.py``."""

    x: Tokens
    weight: conv.Taps
    bias: OptionalChannels
    state: States
    positions: TokenPositions = None
    slots: Slots = None
    dst_slots: Slots = None
    pad_slot: int = -1
    activation: str | None = None
    out: Token = None


def check(call: Call) -> None:
    """What the tensor specs cannot express: there is a tap, and every row has a state."""
    conv.check_call(call.x, call.weight, None)
    _slots.check(call, state=call.state)
    _activation.check(call.activation)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """y [B,D] and the states [P,K-1,D] afterwards."""
    x, weight, bias, state, positions, *_ = call
    at, segment_pos = _slots.of(call, state.shape[0]), None if positions is None else positions[:, None]
    one = conv.Call(x[:, None], weight, bias, _slots.rows(state, at.read), segment_pos, activation=call.activation)
    y, new = conv.reference(one)
    return _slots.silence(y[:, 0], at.read), _slots.updated(state, at.written, new)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of temporal_conv1d for one step; positions from 0 on, so that some documents have just begun."""
    draw = Draws(case, device, seed + 1)
    facts: dict[str, Any] = {"flags": case.flags, "data": ("state", *case.data)}
    one = conv_cost.make_case(case["B"], 1, case["D"], case["K"], case.dtype, **facts)
    full, rows = conv.make_inputs(one, device, seed), draw.decoding()
    state = draw.pooled(full["state"], rows["slots"])
    own = {name: full[name] for name in ("weight", "bias", "activation")}
    return {"x": full["x"][:, 0], **own, "state": state, **rows}


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    (batch, width), taps = call.x.shape, call.weight.shape[0]
    flags = tuple(flag for flag in FLAGS if flag == call.activation)
    facts: dict[str, Any] = {"flags": flags, "pool": call.state.shape[0], "tag": "call"}
    return make_case(batch, width, taps, dtype_name(call.x.dtype), **facts)


def cases() -> tuple[BenchCase, ...]:
    both = ("positions", "slots")
    smoke = [make_case(2, 24, dtype=dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 24, dtype="bfloat16", tag="smoke", data=("wide_parameters",)))
    edge = [
        make_case(1, 1, 1, tag="edge"),
        make_case(5, 33, 7, tag="edge", data=("positions", "strided")),
        make_case(4, 131, pool=9, tag="edge", data=both),
        make_case(6, 40, 3, "bfloat16", pool=6, tag="edge", data=both),
        make_case(4, 40, 4, "float64", pool=11, tag="edge", data=("slots",)),
        make_case(9, 40, pool=12, tag="edge", data=(*both, "pad_zero", "paged")),
        make_case(5, 72, pool=12, tag="edge", data=(*both, "dst_slots")),
        make_case(2, 24, tag="edge", data=("no_bias",)),
        make_case(5, 37, 3, tag="edge", flags=("silu",), data=("positions", "strided", "no_bias")),
        make_case(6, 72, dtype="float16", pool=9, tag="edge", flags=("silu",), data=both),
        make_case(4, 40, dtype="float64", pool=9, tag="edge", flags=("gelu",), data=both),
        make_case(4, 40, dtype="bfloat16", pool=9, tag="edge", flags=("gelu",), data=(*both, "dst_slots")),
        make_case(8, 48, 1, "bfloat16", pool=13, tag="edge", data=("slots", "pad_zero", "dst_slots", "paged")),
    ]
    rg2b, small = "RecurrentGemma-2B, lru_width 2560, 4 taps", "Hawk and Griffin 100M, lru_width 1024, 4 taps"
    decode: dict[str, Any] = {"data": ("positions",)}
    bench = [make_case(batch, 1024, where="cpu", source=small, thorough=True, **decode) for batch in (1, 16)]
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        for batch in (1, 16):
            slow = where == "cpu" and batch == 1
            bench.append(make_case(batch, 2560, dtype=dtype, where=where, source=rg2b, thorough=slow, **decode))
    bench.append(make_case(128, 2560, dtype="bfloat16", where="gpu", source=rg2b, **decode))
    return (*smoke, *edge, *bench)


OP = Op(
    name="temporal_conv1d_step",
    summary="one token of temporal_conv1d, its K-1 last inputs kept in place",
    call=Call,
    outputs={"y": TensorSpec("B D"), "state": TensorSpec("P K-1 D")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=conv.tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    exact_dims=("K",),
    free_dims=("P",),
    minor_flags=FLAGS,
    check=check,
    in_place=("state",),
)
