"""recurrent_block: what lies between the linear layers of Griffin's recurrent block. The contract.

    u = temporal_conv1d(x, conv_weight, conv_bias),   h = rg_lru(u, weights),   out = h * gelu(y)

x and y are the two branches, gelu in its tanh form. segment_pos and cu_seqlens mean what they mean in both pieces: a
document neither sees inputs nor a state of another. Without positions h0 alone says whether the RG-LRU begins with the
first step or continues; conv_state None is zeros either way.

h [B,T,D] is wanted by the backward pass only: None unless ``with_h``.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.recurrent_block.cost import NEAR, cost, make_case
from griffin_kernels.ops.rg_lru import op as lru
from griffin_kernels.ops.temporal_conv1d import op as conv


class Call(NamedTuple):
    """The arguments of recurrent_block; see ``functional/recurrent_block.py``."""

    x: Sequence
    y: Sequence
    conv_weight: conv.Taps
    conv_bias: Channels
    a_param: Channels
    input_gate_weight: lru.Weight
    input_gate_bias: lru.Bias
    recurrence_gate_weight: lru.Weight
    recurrence_gate_bias: lru.Bias
    conv_state: conv.ConvState = None
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    with_h: bool = False


WEIGHTS = Call._fields[2:9]
"""Parameters in the order of the arguments."""


def convolution(call: Any) -> conv.Call:
    """The convolution in a call of recurrent_block or of its gradient."""
    documents = call.segment_pos, call.cu_seqlens
    return conv.Call(call.x, call.conv_weight, call.conv_bias, call.conv_state, *documents)


def check(call: Any) -> None:
    """What the tensor specs cannot express: taps, blocks that fill the width, packed sequences that fill time."""
    conv.check_call(call.x, call.conv_weight, call.cu_seqlens)
    lru.check_blocks(call.x, call.input_gate_bias)


def reference(call: Call) -> tuple[Tensor | None, ...]:
    """out [B,T,D], the new inputs kept [B or N,K-1,D], h_last [B or N,D], and h [B,T,D]. Differentiable."""
    u, new_conv_state = conv.reference(convolution(call))
    h, h_last = lru.reference(lru.within(call, u))
    out = h * torch.nn.functional.gelu(call.y, approximate="tanh")
    return out, new_conv_state, h_last, h if call.with_h else None


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Those of temporal_conv1d and rg_lru, and a standard normal second branch."""
    first, second = conv.make_inputs(case, device, seed), lru.make_inputs(case, device, seed)
    other = conv.make_inputs(case, device, seed + 1)["x"]
    rest = {name: second[name] for name in (*lru.GATES, "h0", "segment_pos", "cu_seqlens")}
    around = {f"conv_{name}": first[name] for name in ("weight", "bias", "state")}
    return {"x": first["x"], "y": other, **around, **rest, "with_h": "with_h" in case.data}


def tolerance(case: Case) -> Tolerance:
    """rg_lru's bounds, with what the convolution's rounding does to its input and gelu to its output."""
    # u carries the convolution's error, e_u in the norm. Through i x it enters h once, through both gates' arguments
    # (which sum n terms of u) it enters as much as their own rounding does, that is twice more: 3 e_u.
    # out = h gelu(y): the norm's relative error stays; gelu and the product add four roundings of the accumulator's
    # unit and one of the output. A single element's error grows with |gelu(y)|, 4 at most here, while out's rms
    # shrinks by gelu's, 0.65 for a standard normal y: a factor of 6 in the worst element.
    convolved, recurrent = conv.tolerance(case), lru.tolerance(case)
    unit = torch.finfo(torch.float32).eps / 2
    rounding = torch.finfo(case.torch_dtype).eps / 2
    return Tolerance(
        rel_norm=recurrent.rel_norm + 3 * convolved.rel_norm + 4 * unit + rounding,
        worst=6 * (recurrent.worst + 3 * convolved.worst) + 4 * unit + 2 * rounding,
    )


def case_of(call: Any, op: str = "recurrent_block") -> Case:
    """The case that a real call is, of recurrent_block or of its backward."""
    (batch, time, width), dtype = call.x.shape, dtype_name(call.x.dtype)
    blocks, taps, rows = call.input_gate_bias.shape[0], call.conv_weight.shape[0], rows_of(batch, call.cu_seqlens)
    flags = lru.flags_of(call)
    return make_case(batch, time, width, blocks, taps, dtype, flags=flags, rows=rows, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by recurrent_block and its backward; one decoded token has an op of its own."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 24, 3, dtype=d, tag="smoke", data=("with_h",)) for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, 3, dtype="bfloat16", tag="smoke", data=("with_h", "wide_parameters")))
    both = ("state", "h0", "with_h")
    edge = [
        case(1, 1, 1, 1, tag="edge", data=both),
        case(1, 2, 40, 4, 7, tag="edge", data=("state", "with_h")),
        case(2, 67, 131, 1, tag="edge", data=("strided", *both)),
        case(2, 45, 64, 2, tag="edge", data=both, dtype="bfloat16"),
        case(2, 50, 40, 4, tag="edge", flags=("segmented",), data=both),
        case(2, 50, 40, 4, dtype="bfloat16", tag="edge", flags=("segmented",), data=("strided", *both)),
        case(1, 97, 40, 4, rows=4, tag="edge", flags=("packed",), data=("with_h",)),
        case(1, 70, 24, 3, 3, dtype="bfloat16", rows=5, tag="edge", flags=("packed",), data=("empty_sequence", *both)),
        case(1, 60, 24, 3, rows=3, tag="edge", flags=("segmented", "packed"), data=both),
    ]
    rg2b, rg9b = "RecurrentGemma-2B, 10 blocks of 256, 4 taps", "RecurrentGemma-9B, 16 blocks of 256, 4 taps"
    paper = "Hawk and Griffin 1.3B, 16 blocks of 160, trained at T 2048"
    small = "Hawk and Griffin 100M, 16 blocks of 64, a prompt"
    forward = op == "recurrent_block"
    bench = [case(1, 2048, 2560, 10, where="cpu", source=rg2b)]
    if forward:
        bench.append(case(1, 1024, 1024, 16, flags=("segmented",), where="cpu", source=small))
    bench.append(case(1, 2048, 2560, 10, 4, dtype="bfloat16", where="cpu", source=rg2b, thorough=True))
    for width, blocks, source in ((2560, 10, rg2b), (4096, 16, rg9b)):
        for batch in (1, 8):
            for time in (2048, 8192):
                slow = width == 4096 or (not forward and (batch, time) != (8, 2048))
                bench.append(
                    case(batch, time, width, blocks, 4, dtype="bfloat16", where="gpu", source=source, thorough=slow)
                )
    documents: dict[str, Any] = {"flags": ("segmented",), "source": f"{paper}, documents"}
    bench.append(case(8, 2048, 2560, 16, 4, dtype="bfloat16", where="gpu", **documents))
    bench.append(case(8, 2048, 2560, 10, where="gpu", source=rg2b, thorough=True))
    return (*smoke, *edge, *bench)


OP = Op(
    name="recurrent_block",
    summary="temporal_conv1d, rg_lru and the product with gelu(y): all between a recurrent block's linear layers",
    call=Call,
    outputs={
        "out": TensorSpec("B T D"),
        "new_conv_state": TensorSpec("N K-1 D"),
        "h_last": TensorSpec("N D", "accumulator"),
        "h": TensorSpec("B T D", optional=True),
    },
    reference=reference,
    cases=cases("recurrent_block"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    exact_dims=NEAR.exact_dims,
    free_dims=NEAR.free_dims,
    check=check,
)
