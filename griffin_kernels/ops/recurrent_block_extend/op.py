"""recurrent_block_extend: recurrent_block on sequences whose states are rows of two pools, in place. The contract.

    u = temporal_conv1d(x, state=conv_states[slots[n]]),  h = rg_lru(u, h0=states[slots[n]]),  out = h * gelu(y)
    conv_states[keep[t]] = the last K-1 inputs at t,      states[keep[t]] = h_t           of every sequence n

``ops/_keep.py`` says what slots and keep mean, ``rg_lru_extend`` which steps are resets. A sequence without a state has
zeros before it. What is kept of the inputs are those of (conv_states[slots[n]], x) up to t, oldest first, with zeros in
place of those before t's document.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _keep
from griffin_kernels.ops._arguments import Channels, Keep, Offsets, Positions, Sequence, Starts, States
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.recurrent_block import op as block
from griffin_kernels.ops.recurrent_block_extend.cost import cost, make_case
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.rg_lru_extend import op as extend
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_extend import op as conv_extend


class Call(NamedTuple):
    """The arguments of recurrent_block_extend; see ``functional/_extend.py``."""

    x: Sequence
    y: Sequence
    conv_weight: conv.Taps
    conv_bias: Channels
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    conv_states: conv_extend.Windows
    states: States
    slots: Starts
    keep: Keep
    segment_pos: Positions = None
    cu_seqlens: Offsets = None


Parameters = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
weights_of: Callable[[Any], Parameters] = operator.attrgetter(*block.WEIGHTS)
"""All parameters of a call in the order of the arguments."""


def convolution(call: Call) -> conv_extend.Call:
    """The convolution, with its pool."""
    rows, documents = (call.conv_states, call.slots, call.keep), (call.segment_pos, call.cu_seqlens)
    return conv_extend.Call(call.x, call.conv_weight, call.conv_bias, *rows, *documents)


def recurrence(call: Call, u: Tensor) -> extend.Call:
    """The RG-LRU of the convolution's output."""
    rows = call.states, call.slots, call.keep
    return extend.Call(u, *lru.gates_of(call), *rows, call.segment_pos, call.cu_seqlens)


def check(call: Call) -> None:
    """What the tensor specs cannot express: what recurrent_block checks, and rows of the pools."""
    block.check(call)
    _keep.check(call, conv_states=call.conv_states, states=call.states)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """out [B,T,D], and both pools afterwards."""
    u, windows = conv_extend.reference(convolution(call))
    h, states = extend.reference(recurrence(call, u))
    out = h * torch.nn.functional.gelu(call.y, approximate="tanh")
    return out, windows, states


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of recurrent_block; pools of standard normal rows; see ``_keep.make`` for which are read and written."""
    draw, full = Draws(case, device, seed + 3), block.make_inputs(case, device, seed)
    slots, keep = _keep.make(case, full["cu_seqlens"], draw.generator)
    return {
        **{name: full[name] for name in ("x", "y", *block.WEIGHTS)},
        "conv_states": draw.pool(case["P"], case["K"] - 1, case["D"], wide=False),
        "states": draw.pool(case["P"], case["D"]),
        "slots": slots.to(device),
        "keep": keep.to(device),
        "segment_pos": full["segment_pos"],
        "cu_seqlens": full["cu_seqlens"],
    }


def tolerance(case: Case) -> Tolerance:
    """That of recurrent_block; kept inputs are copies."""
    return block.tolerance(case)


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    (batch, time, width), taps, blocks = call.x.shape, call.conv_weight.shape[0], call.input_gate_bias.shape[0]
    facts: dict[str, Any] = {"rows": rows_of(batch, call.cu_seqlens), "pool": call.states.shape[0], "tag": "call"}
    return make_case(batch, time, width, blocks, taps, dtype_name(call.x.dtype), flags=lru.flags_of(call), **facts)


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 37, 24, 3, dtype=dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 37, 24, 3, dtype="bfloat16", tag="smoke", data=("wide_parameters",)))
    some, every = ("checkpoints",), ("every_token",)
    packed: dict[str, Any] = {"tag": "edge", "flags": ("packed",)}
    edge = [
        make_case(1, 1, 1, 1, 1, tag="edge"),
        make_case(1, 4, 40, 4, pool=6, tag="edge", data=every),
        make_case(4, 3, 48, 3, 7, "bfloat16", pool=15, tag="edge", data=every),
        make_case(2, 67, 131, 1, pool=40, tag="edge", data=("strided", *some)),
        make_case(3, 50, 24, 24, 3, pool=9, tag="edge", flags=("segmented",), data=("fresh",)),
        make_case(2, 50, 40, 4, 4, "bfloat16", pool=25, tag="edge", flags=("segmented",), data=("strided", *some)),
        make_case(1, 97, 40, 4, rows=4, pool=40, data=("empty_sequence", *some), **packed),
        make_case(1, 23, 24, 3, 5, "bfloat16", rows=7, pool=31, data=every, **packed),
        make_case(1, 60, 24, 3, 4, "float64", rows=3, pool=20, tag="edge", flags=("segmented", "packed"), data=some),
    ]
    rg2b, small = "RecurrentGemma-2B, 10 blocks of 256, 4 taps", "Hawk and Griffin 100M, 16 blocks of 64, 4 taps"
    verify, prompts = f"{rg2b}, 4 drafted tokens", f"{rg2b}, 16 prompts packed"
    gpu: dict[str, Any] = {"dtype": "bfloat16", "where": "gpu"}
    bench = [
        make_case(1, 4, 2560, 10, pool=5, where="cpu", source=verify, data=every),
        make_case(1, 512, 1024, 16, pool=4, where="cpu", source=f"{small}, a piece of a prompt", thorough=True),
        make_case(1, 2048, 2560, 10, pool=16, where="cpu", source=f"{rg2b}, a prompt", thorough=True),
        make_case(16, 4, 2560, 10, pool=80, source=verify, data=every, **gpu),
        make_case(1, 4, 2560, 10, pool=5, source=verify, data=every, thorough=True, **gpu),
        make_case(1, 8192, 2560, 10, rows=16, pool=64, flags=("packed",), source=prompts, thorough=True, **gpu),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="recurrent_block_extend",
    summary="recurrent_block on sequences whose states are rows of two pools, read and written in place",
    call=Call,
    outputs={
        "out": TensorSpec("B T D"),
        "conv_states": TensorSpec("P K-1 D"),
        "states": TensorSpec("P D", "accumulator"),
    },
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=("K",),
    free_dims=("n", "N", "P"),
    check=check,
    in_place=("conv_states", "states"),
)
