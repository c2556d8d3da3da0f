"""rg_lru_extend: rg_lru on sequences whose states are rows of a pool, read and written in place. The contract.

    h_{-1} = states[slots[n]];   y = h = rg_lru(x, h0=h_{-1});   states[keep[t]] = h_t        of every sequence n

``ops/_keep.py`` says what slots and keep mean. Resets are rg_lru's, sequence by sequence: where segment_pos is 0 if it
is given, else at the first step of a sequence without a state. A sequence that has positions, no state and none of 0
starts from zeros. Kept states are float32 (float64 for float64 data), y before it is rounded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _keep
from griffin_kernels.ops._arguments import Channels, Keep, Offsets, Positions, Sequence, Starts, States
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_extend.cost import cost, make_case


class Call(NamedTuple):
    """The arguments of rg_lru_extend; see ``functional/_extend.py``."""

    x: Sequence
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    states: States
    slots: Starts
    keep: Keep
    segment_pos: Positions = None
    cu_seqlens: Offsets = None


def gathered(call: Any, x: Tensor) -> lru.Call:
    """The rg_lru of x that gives a call's states: what sequences start from is gathered, positions tell the fresh."""
    h0, segment_pos = _keep.initial(call.states, call.slots), _keep.positions(call, call.states)
    return lru.Call(x, *lru.gates_of(call), h0, segment_pos, call.cu_seqlens)


def check(call: Call) -> None:
    """What the tensor specs cannot express: blocks fill the width, packed sequences fill time, rows of the pool."""
    lru.check(gate_call(call))
    _keep.check(call, states=call.states)


def gate_call(call: Any) -> lru.Call:
    """The call of rg_lru without states."""
    return lru.Call(call.x, *lru.gates_of(call), None, call.segment_pos, call.cu_seqlens)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """y [B,T,D] and the states [P,D] afterwards."""
    y, _ = lru.reference(gathered(call, call.x))
    return y, _keep.updated(call.states, call.keep, y)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of rg_lru; a pool of standard normal states; see ``_keep.make`` for which of them are read and written."""
    draw, full = Draws(case, device, seed + 3), lru.make_inputs(case, device, seed)
    slots, keep = _keep.make(case, full["cu_seqlens"], draw.generator)
    return {
        "x": full["x"],
        **{name: full[name] for name in lru.GATES},
        "states": draw.pool(case["P"], case["D"]),
        "slots": slots.to(device),
        "keep": keep.to(device),
        "segment_pos": full["segment_pos"],
        "cu_seqlens": full["cu_seqlens"],
    }


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    batch, time, width = call.x.shape
    blocks, dtype, rows = call.input_gate_bias.shape[0], dtype_name(call.x.dtype), rows_of(batch, call.cu_seqlens)
    pool = call.states.shape[0]
    return make_case(batch, time, width, blocks, dtype, lru.flags_of(call), rows=rows, pool=pool, tag="call")


def tolerance(case: Case) -> Tolerance:
    """That of rg_lru: a kept state is a y that is not rounded."""
    return lru.tolerance(case)


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 37, 24, 3, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 37, 24, 3, "bfloat16", tag="smoke", data=("wide_parameters",)))
    some, every = ("checkpoints",), ("every_token",)
    packed: dict[str, Any] = {"tag": "edge", "flags": ("packed",)}
    edge = [
        make_case(1, 1, 1, 1, tag="edge"),
        make_case(1, 4, 40, 4, pool=6, tag="edge", data=every),
        make_case(4, 3, 48, 3, "bfloat16", pool=15, tag="edge", data=every),
        make_case(2, 67, 131, 1, pool=40, tag="edge", data=("strided", *some)),
        make_case(3, 50, 24, 3, pool=30, tag="edge", data=("near_one", *some)),
        make_case(3, 50, 24, 24, pool=9, tag="edge", flags=("segmented",), data=("fresh",)),
        make_case(2, 50, 40, 4, "bfloat16", pool=25, tag="edge", flags=("segmented",), data=("strided", *some)),
        make_case(1, 97, 40, 4, rows=4, pool=40, data=("empty_sequence", *some), **packed),
        make_case(1, 97, 40, 4, "bfloat16", rows=5, pool=7, data=("empty_sequence",), **packed),
        make_case(1, 23, 24, 3, rows=7, pool=31, data=every, **packed),
        make_case(1, 60, 24, 3, "float64", rows=3, pool=20, tag="edge", flags=("segmented", "packed"), data=some),
    ]
    rg2b, small = "RecurrentGemma-2B, 10 blocks of 256", "Hawk and Griffin 100M, 16 blocks of 64"
    verify, prompts = f"{rg2b}, 4 drafted tokens", f"{rg2b}, 16 prompts packed"
    bench = [
        make_case(1, 4, 2560, 10, pool=5, where="cpu", source=verify, data=every),
        make_case(1, 512, 1024, 16, pool=4, where="cpu", source=f"{small}, a piece of a prompt", thorough=True),
        make_case(1, 2048, 2560, 10, pool=16, where="cpu", source=f"{rg2b}, a prompt", thorough=True),
        make_case(16, 4, 2560, 10, "bfloat16", pool=80, where="gpu", source=verify, data=every),
        make_case(1, 4, 2560, 10, "bfloat16", pool=5, where="gpu", source=verify, data=every, thorough=True),
        make_case(
            1, 8192, 2560, 10, "bfloat16", ("packed",), rows=16, pool=64, where="gpu", source=prompts, thorough=True
        ),
        make_case(1, 8192, 2560, 10, "bfloat16", pool=16, where="gpu", source=f"{rg2b}, a prompt", thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="rg_lru_extend",
    summary="rg_lru on sequences whose states are rows of a pool, read and written in place",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "states": TensorSpec("P D", "accumulator")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    free_dims=("n", "N", "P"),
    check=check,
    in_place=("states",),
)
