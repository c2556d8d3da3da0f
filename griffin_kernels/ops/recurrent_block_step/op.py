"""recurrent_block_step: one token between the linear layers of a recurrent block, both states in place. The contract.

    u, conv_state = temporal_conv1d_step(x, conv_weight, conv_bias, conv_state)
    out = rg_lru_step(u, weights, h) * gelu(y)

gelu in its tanh form. What recurrent_block gives for T = 1; the pieces' own files say the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import ROWS, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _slots
from griffin_kernels.ops.recurrent_block import op as block
from griffin_kernels.ops.recurrent_block.cost import make_case as block_case
from griffin_kernels.ops.recurrent_block_step.cost import cost, make_case
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_step import op as lru_step
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_step import op as conv_step


def check(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> None:
    """What the tensor specs cannot express: taps, blocks that fill the width, a state for every row."""
    conv.check_call(x, conv_weight, None)
    lru.check_blocks(x, input_gate_bias)
    _slots.check(x.shape[0], slots, conv_state=conv_state, h=h)


def reference(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [B,D], the inputs [P,K-1,D] and the states [P,D] kept afterwards."""
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    u, conv_after = conv_step.reference(conv_step.Call(x, conv_weight, conv_bias, conv_state, positions, slots))
    state, after = lru_step.reference(u, *gates, h, positions, slots)
    return _slots.silence(state * torch.nn.functional.gelu(y, approximate="tanh"), slots), conv_after, after


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of recurrent_block for one step; positions from 0 on, so that some documents have just begun."""
    generator = torch.Generator("cpu").manual_seed(seed + 2)
    data = ("state", "h0", *case.data)
    full = block.make_inputs(
        block_case(case["B"], 1, case["D"], case["H"], case["K"], case.dtype, data=data), device, seed
    )
    slots = _slots.make(case["B"], case["P"], generator).to(device) if "slots" in case.data else None
    positions = torch.arange(case["B"], device=device, dtype=torch.int64) if "positions" in case.data else None
    return {
        "x": full["x"][:, 0],
        "y": full["y"][:, 0],
        **{name: full[name] for name in block.WEIGHTS},
        "conv_state": _slots.spread(full["conv_state"], case["P"], slots, generator),
        "h": _slots.spread(full["h0"], case["P"], slots, generator),
        "positions": positions,
        "slots": slots,
    }


def tolerance(case: Case) -> Tolerance:
    """That of recurrent_block for one step."""
    return block.tolerance(block_case(case["B"], 1, case["D"], case["H"], case["K"], case.dtype))


def case_of(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
) -> Case:
    """The case that a real call is."""
    taps, blocks = conv_weight.shape[0], input_gate_bias.shape[0]
    batch, width = x.shape
    return make_case(batch, width, blocks, taps, dtype_name(x.dtype), pool=h.shape[0], tag="call")


def cases() -> tuple[Case, ...]:
    both = ("positions", "slots")
    floats = ("float32", "bfloat16", "float16", "float64")
    smoke = [make_case(2, 24, 3, dtype=dtype, tag="smoke") for dtype in floats]
    edge = [
        make_case(1, 1, 1, 1, tag="edge"),
        make_case(3, 131, 1, 7, tag="edge", data=("positions", "strided")),
        make_case(5, 40, 4, pool=9, tag="edge", data=both),
        make_case(18, 48, 3, 3, "bfloat16", pool=20, tag="edge", data=both),
        make_case(4, 40, 4, 4, "float64", pool=11, tag="edge", data=("slots",)),
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
    inputs={
        "x": TensorSpec("B D"),
        "y": TensorSpec("B D"),
        **{name: block.INPUTS[name] for name in block.WEIGHTS},
        "conv_state": TensorSpec("P K-1 D"),
        "h": TensorSpec("P D", "accumulator"),
        "positions": TensorSpec("B", "int64", optional=True, least=0),
        "slots": TensorSpec("B", "int64", optional=True),
    },
    outputs={
        "out": TensorSpec("B D"),
        "conv_state": TensorSpec("P K-1 D"),
        "h": TensorSpec("P D", "accumulator"),
    },
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=("K",),
    free_dims=("n", "P"),
    check=check,
    in_place=("conv_state", "h"),
)
