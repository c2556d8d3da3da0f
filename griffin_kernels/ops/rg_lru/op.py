"""rg_lru: the gated linear recurrence of Griffin and Hawk, gate products included. The contract.

    i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r)         block-diagonal W: y_hj = sum_k x_hk W_hkj
    log a = -8 softplus(a_param) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

At a *reset* a counts as 0 and the multiplier sqrt(1 - a^2) as 1: a document begins with its own input at full weight.
Which steps are resets:

    segment_pos is given        where it is 0, whether h0 is given or not
    neither it nor h0           the first step of each sequence, a batch row or a packed one: it is a fresh sequence
    h0 alone                    none: the call continues

Both published codes ask for positions at every call, and number tokens from 0 where no state is cached.
A packed sequence never sees its neighbour's state, whatever its positions say.

The square root's gradient is clipped at 1000: d sqrt(v) = dv / sqrt(max(4 v, 1e-6)).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, accumulator, dtype_name
from griffin_kernels.ops._arguments import Channels, Offsets, Positions, Sequence, State
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.rg_lru.cost import FLAGS, cost, make_case

Weight = Annotated[Tensor, TensorSpec("H n n")]
"""Of a gate: products of its blocks' channels."""
Bias = Annotated[Tensor, TensorSpec("H n", "parameter")]
"""Of a gate."""


class Call(NamedTuple):
    """The arguments of rg_lru; see ``functional/rg_lru.py``."""

    x: Sequence
    a_param: Channels
    input_gate_weight: Weight
    input_gate_bias: Bias
    recurrence_gate_weight: Weight
    recurrence_gate_bias: Bias
    h0: State = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None


GATES = Call._fields[1:6]
"""Parameters in the order of the arguments."""

gates_of: Callable[[Any], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = operator.attrgetter(*GATES)
"""The parameters of a call that has them by these names."""

DECAY = 8.0
"""log a = -DECAY softplus(a_param) r."""

MAX_SQRT_GRADIENT = 1000.0
"""Largest derivative of the square root in the multiplier."""


def within(call: Any, x: Tensor) -> Call:
    """The RG-LRU of x in a call that has its other arguments by these names."""
    return Call(x, *gates_of(call), call.h0, call.segment_pos, call.cu_seqlens)


def check(call: Call) -> None:
    """What the tensor specs cannot express: blocks fill the width, packed sequences fill time."""
    check_blocks(call.x, call.input_gate_bias)
    if call.cu_seqlens is not None:
        scan.check_cu_seqlens(call.cu_seqlens, batch=call.x.shape[0], total=call.x.shape[1])


def check_blocks(x: Tensor, input_gate_bias: Tensor) -> None:
    """Raise ShapeError where the gates' blocks [H, n] do not make the channels of x."""
    blocks, block_width = input_gate_bias.shape
    if blocks * block_width != x.shape[-1]:
        raise errors.ShapeError(
            f"input_gate_weight has {blocks} blocks of width {block_width}, which make {blocks * block_width} "
            f"channels; x has {x.shape[-1]}"
        )


def blockwise(x: Tensor, blocks: int) -> Tensor:
    """[B,T,D] -> [H, B*T, n], a view where x's strides allow one."""
    return x.reshape(-1, blocks, x.shape[2] // blocks).transpose(0, 1)


def is_fresh(h0: Tensor | None, segment_pos: Tensor | None) -> bool:
    """Whether the first step of each sequence, and no other, is a reset."""
    return h0 is None and segment_pos is None


def resets(call: Any) -> Tensor | None:
    """bool [B,T] or [1,T], True where a document begins; None where no step is a reset. Reads no value on the host."""
    if call.segment_pos is not None:
        positions: Tensor = call.segment_pos
        return positions == 0
    if call.h0 is not None:
        return None
    # an empty sequence begins where the next one does, or at T, which is cut off
    begins = torch.zeros(call.x.shape[1] + 1, dtype=torch.bool, device=call.x.device)
    if call.cu_seqlens is None:
        begins[:1] = True
    else:
        begins[call.cu_seqlens[:-1].long()] = True
    return begins[None, :-1]


class ClippedSqrt(torch.autograd.Function):
    """sqrt(v), v >= 0, with a derivative of at most MAX_SQRT_GRADIENT."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.sqrt(v)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, dm: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return dm * sqrt_derivative(v)


def sqrt_derivative(v: Tensor) -> Tensor:
    """1 / (2 sqrt(v)), at most MAX_SQRT_GRADIENT."""
    return (4.0 * v).clamp_min(MAX_SQRT_GRADIENT**-2).rsqrt()


def gates(call: Any) -> tuple[Tensor, Tensor]:
    """i and r [B,T,D]."""
    blocks = call.x.reshape(*call.x.shape[:2], *call.input_gate_bias.shape)  # [B, T, H, n]
    z_i = torch.einsum("bthk,hkj->bthj", blocks, call.input_gate_weight) + call.input_gate_bias
    z_r = torch.einsum("bthk,hkj->bthj", blocks, call.recurrence_gate_weight) + call.recurrence_gate_bias
    return torch.sigmoid(z_i).flatten(2), torch.sigmoid(z_r).flatten(2)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The equations at the top of this file. Returns y [B,T,D] and h_last [B or N, D]. Differentiable."""
    return recurrence(call, *gates(call), DECAY)


def recurrence(call: Any, i: Tensor, r: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """y and h_last of a call's x by gates i and r [B,T,D], with log a = -c softplus(a_param) r."""
    log_a = -c * torch.logaddexp(call.a_param, torch.zeros_like(call.a_param)) * r
    a = torch.exp(log_a)
    multiplier: Tensor = ClippedSqrt.apply(-torch.expm1(2 * log_a))
    reset = resets(call)
    if reset is not None:
        a = torch.where(reset[..., None], 0.0, a)
        multiplier = torch.where(reset[..., None], 1.0, multiplier)
        reset = reset.expand(call.x.shape[:2])
    return scan.reference(scan.Call(multiplier * i * call.x, a, call.h0, reset, call.cu_seqlens))[:2]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x, gates and a_param as the published code initialises them, small biases.

    With ``wide_parameters`` in the case's data, a_param and the biases are float32. With ``near_one``, a_param reaches
    down to -30: 1 - a^2 goes far below the clipping threshold.
    """
    draw = Draws(case, device, seed)
    batch, time, width, rows, blocks, n = (case[name] for name in ("B", "T", "D", "N", "H", "n"))
    a_param = draw_a_param(draw)
    return {
        "x": draw.placed(draw.normal(batch, time, width)),
        "a_param": draw.parameter(a_param),
        "input_gate_weight": draw.placed(draw.normal(blocks, n, n) * n**-0.5),
        "input_gate_bias": draw.parameter(draw.normal(blocks, n) * 0.3),
        "recurrence_gate_weight": draw.placed(draw.normal(blocks, n, n) * n**-0.5),
        "recurrence_gate_bias": draw.parameter(draw.normal(blocks, n) * 0.3),
        "h0": draw.wide(draw.normal(rows, width)) if "h0" in case.data else None,
        "cu_seqlens": draw.offsets() if "packed" in case.flags else None,
        "segment_pos": draw.positions(time) if "segmented" in case.flags else None,
    }


def draw_a_param(draw: Draws) -> Tensor:
    """float32 [D] on the CPU: as the published code initialises it, or from -30 up with ``near_one``."""
    width = draw.case["D"]
    radius = 0.9 + 0.099 * draw.uniform(width)
    if "near_one" in draw.case.data:
        return -30 + 26 * draw.uniform(width)
    return torch.log(torch.expm1(-torch.log(radius)))


def gate_rounding(case: Case) -> float:
    """Relative error of what the gates multiply, from rounding of their arguments."""
    # A gate's argument z = x W + b is of order 1 and may be rounded to the data's dtype, as matrix products of that
    # dtype give it; in float32 it carries sqrt(n) roundings. sigmoid passes on at most a quarter of |dz|, which
    # relative to sigmoid(z) is below |dz|.
    unit: float = torch.finfo(case.torch_dtype).eps / 2
    return unit if case.half else unit * case["n"] ** 0.5


def tolerance(case: Case) -> Tolerance:
    """The scan's own bounds, plus the gates' rounding carried through it."""
    # i enters once. r enters log a and sqrt(1 - a^2): a relative error e of log a changes a state that remembers
    # 1 / |log a| steps by about e, and the multiplier by e / 2. The product multiplier * i * x may be rounded to the
    # data's dtype too. All are independent from step to step, so that they average out: 2 in the norm; a single
    # element can see |z| = 4 and an |x| whose neighbours are small: 16.
    # Between the products and the scan lie some eight elementwise steps, each with its rounding.
    gate = gate_rounding(case)
    unit = torch.finfo(accumulator(case.torch_dtype)).eps / 2
    one_way = scan.tolerance(case)
    return Tolerance(one_way.rel_norm + 2 * gate + 8 * unit, one_way.worst + 16 * gate + 8 * unit)


def case_of(call: Any, op: str = "rg_lru") -> Case:
    """The case that a real call is, of rg_lru or of its backward."""
    batch, time, width = call.x.shape
    blocks, dtype = call.input_gate_bias.shape[0], dtype_name(call.x.dtype)
    rows = scan.rows_of(batch, call.cu_seqlens)
    return make_case(batch, time, width, blocks, dtype, flags_of(call), rows=rows, op=op, tag="call")


def flags_of(call: Any) -> list[str]:
    """The flags of a call with documents."""
    present = {"segmented": call.segment_pos is not None, "packed": call.cu_seqlens is not None}
    return [flag for flag in FLAGS if present[flag]]


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by rg_lru and its backward."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 24, 3, dtype=d, tag="smoke") for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, 3, dtype="bfloat16", tag="smoke", data=("wide_parameters",)))
    edge = [
        case(1, 1, 1, 1, tag="edge", data=("h0",)),
        case(2, 67, 131, 1, tag="edge", data=("strided", "h0")),
        case(2, 45, 64, 2, tag="edge", data=("h0",), dtype="bfloat16"),
        case(3, 50, 24, 3, tag="edge", data=("near_one", "h0")),
        case(2, 67, 24, 24, tag="edge", flags=("segmented",), data=("h0",)),
        case(2, 50, 40, 4, tag="edge", flags=("segmented",), dtype="bfloat16", data=("strided",)),
        case(1, 97, 40, 4, rows=4, tag="edge", flags=("packed",)),
        case(1, 97, 40, 4, rows=4, tag="edge", flags=("packed",), data=("h0", "empty_sequence")),
        case(1, 97, 40, 4, rows=3, tag="edge", flags=("segmented", "packed"), data=("h0",)),
    ]
    rg2b = "RecurrentGemma-2B, lru_width 2560, 10 blocks"
    rg9b = "RecurrentGemma-9B, lru_width 4096, 16 blocks"
    paper = "Hawk and Griffin 1.3B, D_RNN 2560, 16 blocks, trained at T 2048"
    bench = [
        case(1, 2048, 2560, 10, where="cpu", source=rg2b),
        case(1, 1024, 4096, 16, where="cpu", source=rg9b, thorough=True),
        case(1, 2048, 2560, 10, where="cpu", dtype="bfloat16", source=rg2b, thorough=op == "rg_lru_bwd"),
        case(1, 2048, 2560, 16, where="cpu", source=paper, thorough=True),
        case(1, 2048, 2560, 10, where="cpu", flags=("segmented",), source=f"{rg2b}, documents", thorough=True),
        case(8, 256, 2560, 10, where="cpu", source=rg2b, thorough=True),
    ]
    if op == "rg_lru":
        small = "Hawk and Griffin 100M, a prompt"
        bench.append(case(1, 1024, 1024, 16, where="cpu", flags=("segmented",), source=small, thorough=True))
    for width, blocks, source in ((2560, 10, rg2b), (4096, 16, rg9b)):
        for batch in (1, 8):
            for time in (2048, 8192):
                facts: dict[str, Any] = {"dtype": "bfloat16", "source": source, "thorough": width == 4096}
                bench.append(case(batch, time, width, blocks, where="gpu", **facts))
    bench.append(case(8, 2048, 2560, 16, where="gpu", dtype="bfloat16", source=paper))
    bench.append(case(8, 2048, 2560, 10, where="gpu", dtype="float32", source=rg2b, thorough=True))
    bench.append(
        case(8, 2048, 2560, 16, where="gpu", dtype="bfloat16", flags=("segmented",), source=f"{paper}, documents")
    )
    return (*smoke, *edge, *bench)


OP = Op(
    name="rg_lru",
    summary="gates of x by block-diagonal products, then h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "h_last": TensorSpec("N D", "accumulator")},
    reference=reference,
    cases=cases("rg_lru"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("H", "D")),
    free_dims=("n", "N"),
    check=check,
)
