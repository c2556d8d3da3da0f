"""temporal_conv1d_extend: temporal_conv1d on sequences whose states are rows of a pool, in place. The contract.

    before = states[slots[n]];   y = temporal_conv1d(x, before);   states[keep[t]] = window_t       of every sequence n

The window of a token is its last K-1 inputs, itself included and the oldest first: what a call that goes on after it
starts from. Inputs before the token's document are zeros in it, as in temporal_conv1d's new state. ``ops/_keep.py``
says what slots and keep mean; a sequence without a state starts from zeros.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _activation, _keep
from griffin_kernels.ops._arguments import Keep, Offsets, OptionalChannels, Positions, Sequence, Starts
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.temporal_conv1d import op as conv
from griffin_kernels.ops.temporal_conv1d_extend.cost import cost, make_case

Windows = Annotated[Tensor, TensorSpec("P K-1 D")]


class Call(NamedTuple):
    """The arguments of temporal_conv1d_extend; see ``functional/_extend.py``."""

    x: Sequence
    weight: conv.Taps
    bias: OptionalChannels
    states: Windows
    slots: Starts
    keep: Keep
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    activation: str | None = None


def continued(call: Call, before: Tensor | None) -> conv.Call:
    """The temporal_conv1d of sequences that start from ``before`` [N,K-1,D]."""
    documents = call.segment_pos, call.cu_seqlens
    return conv.Call(call.x, call.weight, call.bias, before, *documents, activation=call.activation)


def gathered(call: Call) -> conv.Call:
    """That of a call, its states gathered."""
    return continued(call, _keep.initial(call.states, call.slots))


def check(call: Call) -> None:
    """What the tensor specs cannot express: those of temporal_conv1d, and rows of the pool."""
    conv.check(continued(call, None))
    _keep.check(call, states=call.states)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """y [B,T,D] and the windows [P,K-1,D] afterwards, token by token."""
    given = gathered(call)
    y, _ = conv.reference(given)
    states, rows = call.states.clone(), call.weight.shape[0] - 1
    parts = [given] if call.cu_seqlens is None else conv.sequences(given)
    keep, begin = call.keep, 0
    for part in parts:
        assert part.state is not None
        time, inputs = part.x.shape[1], torch.cat([part.state, part.x], dim=1)
        for b, t in (keep[:, begin : begin + time] >= 0).nonzero().tolist():
            row = int(keep[b, begin + t])
            if row >= states.shape[0]:
                continue
            window = inputs[b, t + 1 : t + 1 + rows]
            if part.segment_pos is not None:
                age = torch.arange(rows - 1, -1, -1, dtype=torch.int64, device=window.device)
                window = torch.where((age <= part.segment_pos[b, t])[:, None], window, 0.0)
            states[row] = window
        begin += time
    return y, states


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of temporal_conv1d; a pool of standard normal windows; ``_keep.make`` says which are read, and written."""
    draw, full = Draws(case, device, seed + 3), conv.make_inputs(case, device, seed)
    slots, keep = _keep.make(case, full["cu_seqlens"], draw.generator)
    return {
        **{name: full[name] for name in ("x", "weight", "bias")},
        "states": draw.pool(case["P"], case["K"] - 1, case["D"], wide=False),
        "slots": slots.to(device),
        "keep": keep.to(device),
        **{name: full[name] for name in ("segment_pos", "cu_seqlens", "activation")},
    }


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    of_conv = conv.case_of(continued(call, None))
    batch, time, width = call.x.shape
    facts: dict[str, Any] = {"rows": of_conv["N"], "pool": call.states.shape[0], "tag": "call"}
    return make_case(batch, time, width, of_conv["K"], dtype_name(call.x.dtype), of_conv.flags, **facts)


def tolerance(case: Case) -> Tolerance:
    """That of temporal_conv1d: kept windows are copies."""
    return conv.tolerance(case)


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 37, 24, dtype=dtype, tag="smoke") for dtype in DTYPE_BYTES]
    smoke.append(make_case(2, 37, 24, dtype="bfloat16", tag="smoke", data=("wide_parameters",)))
    some, every = ("checkpoints",), ("every_token",)
    packed: dict[str, Any] = {"tag": "edge", "flags": ("packed",)}
    edge = [
        make_case(1, 1, 1, tag="edge"),
        make_case(2, 9, 5, 1, pool=9, tag="edge", data=some),
        make_case(1, 4, 40, pool=6, tag="edge", data=every),
        make_case(4, 3, 48, dtype="bfloat16", pool=15, tag="edge", flags=("silu",), data=(*every, "no_bias")),
        make_case(2, 67, 131, pool=40, tag="edge", data=("strided", *some)),
        make_case(3, 50, 24, 7, pool=9, tag="edge", flags=("segmented",), data=("fresh",)),
        make_case(
            2, 50, 40, dtype="float16", pool=25, tag="edge", flags=("segmented", "gelu"), data=("strided", *some)
        ),
        make_case(1, 97, 40, rows=4, pool=40, data=("empty_sequence", *some), **packed),
        make_case(1, 97, 40, 2, "bfloat16", rows=5, pool=7, data=("empty_sequence",), **packed),
        make_case(1, 23, 24, 7, rows=7, pool=31, data=every, **packed),
        make_case(1, 60, 24, dtype="float64", rows=3, pool=20, tag="edge", flags=("segmented", "packed"), data=some),
    ]
    rg2b, small = "RecurrentGemma-2B, lru_width 2560, 4 taps", "Hawk and Griffin 100M, lru_width 1024, 4 taps"
    verify, prompts = f"{rg2b}, 4 drafted tokens", f"{rg2b}, 16 prompts packed"
    cpu: dict[str, Any] = {"where": "cpu"}
    gpu: dict[str, Any] = {"where": "gpu", "dtype": "bfloat16"}
    bench = [
        make_case(1, 4, 2560, pool=5, source=verify, data=every, **cpu),
        make_case(1, 512, 1024, pool=4, source=f"{small}, a piece of a prompt", thorough=True, **cpu),
        make_case(16, 4, 2560, pool=80, source=verify, data=every, **gpu),
        make_case(1, 8192, 2560, rows=16, pool=64, flags=("packed",), source=prompts, thorough=True, **gpu),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="temporal_conv1d_extend",
    summary="temporal_conv1d on sequences whose states are rows of a pool, read and written in place",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "states": TensorSpec("P K-1 D")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    exact_dims=("K",),
    free_dims=("N", "P"),
    minor_flags=_activation.NAMES,
    check=check,
    in_place=("states",),
)
