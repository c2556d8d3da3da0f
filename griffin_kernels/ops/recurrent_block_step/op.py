"""recurrent_block_step: one token between the linear layers of a recurrent block, both states in place. The contract.

    u, conv_state = temporal_conv1d_step(x, conv_weight, conv_bias, conv_state)
    out = rg_lru_step(u, weights, h) * gelu(y)

gelu in its tanh form. What recurrent_block gives for T = 1; the pieces' own files say the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Destination, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _slots
from griffin_kernels.ops._arguments import Channels, Slots, States, TokenPositions, Tokens
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.recurrent_block import op as block
from griffin_kernels.ops.recurrent_block.cost import make_case as block_case
from griffin_kernels.ops.recurrent_block_step.cost import NEAR, cost, make_case
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_step import op as lru_step
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_step import op as conv_step


class Call(NamedTuple):
    """The arguments of recurrent_block_step; see ``functional/recurrent_block_step.py``."""

    x: Tokens
    y: Tokens
    conv_weight: conv.Taps
    conv_bias: Channels
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    conv_state: conv_step.States
    h: States
    positions: TokenPositions = None
    slots: Slots = None
    dst_slots: Slots = None
    pad_slot: int = -1
    out: Annotated[Tensor | None, Destination("out")] = None


def rows_of(call: Any) -> tuple[Any, ...]:
    """What a step's call says of its rows, for that of a piece."""
    return call.positions, call.slots, call.dst_slots, call.pad_slot


def convolution(call: Call) -> conv_step.Call:
    """The step of the convolution in a call."""
    return conv_step.Call(call.x, call.conv_weight, call.conv_bias, call.conv_state, *rows_of(call))


def recurrence(call: Call, u: Tensor) -> lru_step.Call:
    """The step of the RG-LRU in a call, of the convolution's output."""
    return lru_step.Call(u, *lru.gates_of(call), call.h, *rows_of(call))


def check(call: Call) -> None:
    """What the tensor specs cannot express: taps, blocks that fill the width, a state for every row."""
    conv.check_call(call.x, call.conv_weight, None)
    lru.check_blocks(call.x, call.input_gate_bias)
    _slots.check(call, conv_state=call.conv_state, h=call.h)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """out [B,D], the inputs [P,K-1,D] and the states [P,D] kept afterwards."""
    u, conv_after = conv_step.reference(convolution(call))
    state, after = lru_step.reference(recurrence(call, u))
    out, at = state * torch.nn.functional.gelu(call.y, approximate="tanh"), _slots.of(call, call.h.shape[0])
    return _slots.silence(out, at.read), conv_after, after


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of recurrent_block for one step; positions from 0 on, so that some documents have just begun."""
    draw = Draws(case, device, seed + 2)
    sizes, data = (case["B"], 1, case["D"], case["H"], case["K"]), ("state", "h0", *case.data)
    full = block.make_inputs(block_case(*sizes, case.dtype, data=data), device, seed)
    rows = draw.decoding()
    kept, h = (draw.pooled(full[name], rows["slots"]) for name in ("conv_state", "h0"))
    weights = {name: full[name] for name in block.WEIGHTS}
    return {"x": full["x"][:, 0], "y": full["y"][:, 0], **weights, "conv_state": kept, "h": h, **rows}


def tolerance(case: Case) -> Tolerance:
    """That of recurrent_block for one step."""
    return block.tolerance(block_case(case["B"], 1, case["D"], case["H"], case["K"], case.dtype))


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    (batch, width), taps, blocks = call.x.shape, call.conv_weight.shape[0], call.input_gate_bias.shape[0]
    return make_case(batch, width, blocks, taps, dtype_name(call.x.dtype), pool=call.h.shape[0], tag="call")


def cases() -> tuple[BenchCase, ...]:
    both = ("positions", "slots")
    smoke = [make_case(2, 24, 3, dtype=dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 24, 3, dtype="bfloat16", tag="smoke", data=("wide_parameters",)))
    edge = [
        make_case(1, 1, 1, 1, tag="edge"),
        make_case(3, 131, 1, 7, tag="edge", data=("positions", "strided")),
        make_case(5, 40, 4, pool=9, tag="edge", data=both),
        make_case(18, 48, 3, 3, "bfloat16", pool=20, tag="edge", data=both),
        make_case(4, 40, 4, 4, "float64", pool=11, tag="edge", data=("slots",)),
        make_case(9, 40, 4, pool=12, tag="edge", data=(*both, "pad_zero", "paged")),
        make_case(5, 72, 1, pool=12, tag="edge", data=(*both, "dst_slots")),
        make_case(8, 48, 3, 3, "bfloat16", pool=13, tag="edge", data=("slots", "pad_zero", "dst_slots", "paged")),
    ]
    rg2b, rg9b = "RecurrentGemma-2B, 10 blocks of 256, 4 taps", "RecurrentGemma-9B, 16 blocks of 256, 4 taps"
    small = "Hawk and Griffin 100M, 16 blocks of 64, 4 taps"
    decode: dict[str, Any] = {"data": ("positions",)}
    bench = [make_case(batch, 1024, 16, where="cpu", source=small, **decode) for batch in (1, 16)]
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        for batch in (1, 16):
            bench.append(make_case(batch, 2560, 10, 4, dtype, where=where, source=rg2b, **decode))
    for batch in (1, 16, 128):
        slow = batch != 128
        bench.append(make_case(batch, 4096, 16, 4, "bfloat16", where="gpu", source=rg9b, thorough=slow, **decode))
    return (*smoke, *edge, *bench)


OP = Op(
    name="recurrent_block_step",
    summary="one token of recurrent_block, both states kept in place",
    call=Call,
    outputs={"out": TensorSpec("B D"), "conv_state": TensorSpec("P K-1 D"), "h": TensorSpec("P D", "accumulator")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=NEAR.exact_dims,
    free_dims=NEAR.free_dims,
    check=check,
    in_place=("conv_state", "h"),
)
