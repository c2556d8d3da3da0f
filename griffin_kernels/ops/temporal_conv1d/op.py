"""temporal_conv1d: the causal depthwise convolution before the RG-LRU. The contract.

    y_t = act(bias + sum_k weight[K-1-k] x_{t-k}) + residual_t,   k = 0 .. K-1

act is silu, gelu in its tanh form or nothing; it is taken of the sum before that is rounded. Without a bias that is 0.
So is the residual, which is added before y is rounded. What reaches it is what reaches y, so that the gradient's op has
no part in it.
Inputs before x are the state, its oldest row first, or zeros. With segment_pos, tap k > 0 counts only where
k <= segment_pos[t]: an earlier document is never read.

The new state holds the last K-1 inputs of (state, x), and zeros in place of those that precede the last token's
document. The next call's positions would mask them anyway; so does the state by itself, for a caller that decodes
without positions. The published PyTorch code does the same (it multiplies x by its document mask in place).

With cu_seqlens [N+1], N sequences are packed into a batch of one, each with a state of its own: state and new state are
[N,K-1,D]. Before a sequence comes its state, or zeros, and never its neighbour. The state of a sequence without steps
passes through unchanged.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name, roundings
from griffin_kernels.ops import _activation
from griffin_kernels.ops._arguments import Offsets, OptionalChannels, OptionalSequence, Positions, Sequence
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan import op as scan
from griffin_kernels.ops.temporal_conv1d.cost import FLAGS, MINOR_FLAGS, cost, make_case

Taps = Annotated[Tensor, TensorSpec("K D", "parameter")]
ConvState = Annotated[Tensor | None, TensorSpec("N K-1 D")]


class Call(NamedTuple):
    """The arguments of temporal_conv1d; see ``functional/temporal_conv1d.py``."""

    x: Sequence
    weight: Taps
    bias: OptionalChannels
    state: ConvState = None
    segment_pos: Positions = None
    cu_seqlens: Offsets = None
    residual: OptionalSequence = None
    activation: str | None = None


def check(call: Any) -> None:
    """What the tensor specs cannot express: there is a tap, packed sequences fill time, there is such an activation."""
    check_call(call.x, call.weight, call.cu_seqlens)
    _activation.check(call.activation)


def check_call(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> None:
    """Raise ShapeError where ``weight`` [K, D] has no taps, and as linear_scan does for ``cu_seqlens``."""
    if weight.shape[0] < 1:
        raise errors.ShapeError(f"weight has shape {list(weight.shape)}, expected [K, D] with K >= 1 taps")
    if cu_seqlens is not None:
        scan.check_cu_seqlens(cu_seqlens, batch=x.shape[0], total=x.shape[1])


def kept(segment_pos: Tensor, taps: int, cu_seqlens: Tensor | None = None) -> Tensor:
    """bool [B or N, K-1]: which rows of the new state belong to the last token's document. T >= 1."""
    age = torch.arange(taps - 2, -1, -1, device=segment_pos.device, dtype=torch.int64)
    if cu_seqlens is None:
        return age <= segment_pos[:, -1:]
    last = segment_pos[0, (cu_seqlens[1:].long() - 1).clamp(min=0)]
    # the state of a sequence without steps is its own
    return (age <= last[:, None]) | (cu_seqlens.diff() == 0)[:, None]


def new_state(
    x: Tensor, state: Tensor | None, segment_pos: Tensor | None, cu_seqlens: Tensor | None, taps: int
) -> Tensor:
    """[B or N, K-1, D], contiguous and never a view: what goes into the call for the tokens that follow."""
    batch, time, width = x.shape
    rows = taps - 1
    if cu_seqlens is not None:
        new = _new_state_packed(x, state, cu_seqlens, rows)
    elif time >= rows:
        new = x[:, time - rows :].clone(memory_format=torch.contiguous_format)
    elif state is None:
        new = x.new_zeros(batch, rows, width)
        new[:, rows - time :] = x
    else:
        new = torch.cat([state[:, time:], x], dim=1)
    if segment_pos is not None and time and rows:
        new = new.masked_fill_(~kept(segment_pos, taps, cu_seqlens)[..., None], 0.0)
    return new


def _new_state_packed(x: Tensor, state: Tensor | None, cu_seqlens: Tensor, rows: int) -> Tensor:
    """[N, rows, D]: the last rows of each sequence, and of its state where it has fewer. Reads nothing on the host."""
    starts, ends = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    count = starts.shape[0]
    if rows == 0 or x.shape[1] == 0:
        if state is None:
            return x.new_zeros(count, rows, x.shape[2])
        return state.clone(memory_format=torch.contiguous_format)
    steps = torch.arange(rows, device=x.device, dtype=torch.int64)
    at = ends - rows + steps  # [N, rows], in x where a sequence reaches that far back
    new = x[0, at.clamp(min=0)]
    before = (at < starts)[..., None]
    if state is None:
        return new.masked_fill_(before, 0.0)
    source = (ends - starts + steps).clamp(max=rows - 1)
    return torch.where(before, state[torch.arange(count, device=x.device, dtype=torch.int64)[:, None], source], new)


def reference(call: Call) -> tuple[Tensor, Tensor]:
    """The sum at the top of this file, tap by tap; packed sequences one by one. Differentiable.

    Returns y [B,T,D] and the new state [B or N,K-1,D].
    """
    x, weight, bias, state, segment_pos, cu_seqlens, residual, activation = call
    if cu_seqlens is not None:
        ys, states = zip(*map(reference, sequences(call)), strict=True)
        return torch.cat(ys, dim=1), torch.cat(states)
    batch, time, width = x.shape
    taps = weight.shape[0]
    before = x.new_zeros(batch, taps - 1, width) if state is None else state
    inputs = torch.cat([before, x], dim=1)  # [B, K-1+T, D]
    y = x.new_zeros(()).expand(x.shape) if bias is None else bias.expand(x.shape)
    for k in range(taps):
        term = weight[taps - 1 - k] * inputs[:, taps - 1 - k : taps - 1 - k + time]
        if segment_pos is not None and k > 0:
            # the product is selected: of an input alone, its gradient would still reach the tap as a factor of zero
            term = torch.where((k <= segment_pos)[..., None], term, 0.0)
        y = y + term
    after = inputs[:, time:]
    if segment_pos is not None and time:
        after = torch.where(kept(segment_pos, taps)[..., None], after, 0.0)
    y = _activation.apply(activation, y)
    return y if residual is None else y + residual, after


def sequences(call: Any) -> Iterator[Any]:
    """A call of either op on packed sequences as calls on one after the other."""
    given = {name: tensor for name, tensor in call._asdict().items() if tensor is not None}
    for row, (start, end) in enumerate(itertools.pairwise(call.cu_seqlens.tolist())):
        rows = {name: given[name][row : row + 1] for name in ("state", "dnew_state") if name in given}
        steps = {name: given[name][:, start:end] for name in ("x", "dy", "segment_pos", "residual") if name in given}
        yield call._replace(**rows, **steps, cu_seqlens=None)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal x and state, taps of variance 1 / K, a small bias."""
    draw = Draws(case, device, seed)
    batch, time, width, taps, rows = (case[name] for name in ("B", "T", "D", "K", "N"))
    return {
        "x": draw.placed(draw.normal(batch, time, width)),
        "weight": draw.placed(draw.normal(taps, width) * taps**-0.5, dims=2, parameter=True),
        "bias": None if "no_bias" in case.data else draw.parameter(draw.normal(width) * 0.3),
        "state": draw.placed(draw.normal(rows, taps - 1, width)) if "state" in case.data else None,
        "segment_pos": draw.positions(time) if "segmented" in case.flags else None,
        "cu_seqlens": draw.offsets(first_too=True) if "packed" in case.flags else None,
        "residual": draw.placed(draw.normal(batch, time, width)) if "residual" in case.flags else None,
        "activation": next((name for name in _activation.NAMES if name in case.flags), None),
    }


def tolerance(case: Case) -> Tolerance:
    """Bounds that follow from rounding, with a factor for how errors add up."""
    # K products and the bias: K+1 terms, each rounded at most K+1 times to the accumulator's unit u. Terms are of the
    # size of y's rms or below and independent: sqrt(K+1) u in the norm, with a factor of 2. A single element may be
    # made of terms 4 times the rms that cancel, and at worst all roundings point one way: 4 (K+1) u.
    # The output adds its own rounding: 2^-9 bf16, 2^-12 fp16, relative to the element. A residual is one term more.
    terms = case["K"] + 1 + ("residual" in case.flags)
    unit, rounding = roundings(case.torch_dtype)
    summed = Tolerance(rel_norm=2 * unit * terms**0.5, worst=4 * unit * terms)
    if any(name in case.flags for name in _activation.NAMES):
        # An activation's slope is at most 1.13, and of a sum with an rms of 1 it gives one of 0.6: twice the sum's
        # error. Its own is 4 units, of an exponential and a reciprocal in hardware that are right to 2^-22 each; where
        # its slope is taken, 1 - s cancels and z multiplies that, which is 4 more at z = 4.
        summed = Tolerance(2 * summed.rel_norm + 8 * unit, 2 * summed.worst + 16 * unit)
    return Tolerance(summed.rel_norm + rounding, summed.worst + 2 * rounding)


def case_of(call: Any, op: str = "temporal_conv1d") -> Case:
    """The case that a real call is, of temporal_conv1d or of its backward."""
    batch, time, width = call.x.shape
    rows = scan.rows_of(batch, call.cu_seqlens)
    present = {"segmented": call.segment_pos is not None, "packed": call.cu_seqlens is not None, call.activation: True}
    present["residual"] = getattr(call, "residual", None) is not None
    flags = [flag for flag in FLAGS if present.get(flag)]
    taps = call.weight.shape[0]
    return make_case(batch, time, width, taps, dtype_name(call.x.dtype), flags, rows=rows, op=op, tag="call")


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by temporal_conv1d and its backward; one decoded token has an op of its own."""
    case = functools.partial(make_case, op=op)
    smoke = [case(2, 37, 24, tag="smoke", dtype=d) for d in DTYPE_BYTES]
    smoke.append(case(2, 37, 24, tag="smoke", data=("state",)))
    smoke.append(case(2, 37, 24, tag="smoke", dtype="bfloat16", data=("wide_parameters",)))
    smoke.append(case(2, 37, 24, tag="smoke", flags=("silu",), data=("state",)))
    edge = [
        case(1, 1, 1, tag="edge", data=("state",)),
        case(1, 2, 3, tag="edge"),
        case(3, 2, 70, tag="edge", data=("state",), dtype="bfloat16"),
        case(2, 19, 33, 1, tag="edge", data=("state",)),
        case(2, 19, 33, 7, tag="edge", data=("state",), flags=("segmented",)),
        case(1, 4, 5, 7, tag="edge", data=("state",)),
        case(2, 67, 131, tag="edge", data=("strided", "state")),
        case(2, 67, 131, 3, tag="edge", flags=("segmented",), data=("strided",), dtype="bfloat16"),
        case(2, 67, 48, tag="edge", flags=("segmented",)),
        case(3, 97, 40, tag="edge", flags=("segmented",), data=("state",), dtype="float16"),
        case(4, 3, 40, tag="edge", flags=("segmented",), data=("state",), dtype="float64"),
        case(4, 1, 40, tag="edge", flags=("segmented",), data=("state",)),
        case(1, 77, 40, rows=4, tag="edge", flags=("packed",)),
        case(1, 77, 40, rows=5, tag="edge", flags=("packed",), data=("state", "empty_sequence"), dtype="bfloat16"),
        case(1, 5, 33, 7, rows=4, tag="edge", flags=("packed",), data=("state",), dtype="float64"),
        case(1, 61, 70, rows=3, tag="edge", flags=("segmented", "packed"), data=("state", "strided")),
        case(2, 37, 24, tag="edge", data=("no_bias",)),
        case(1, 1, 5, tag="edge", flags=("silu",), data=("state",)),
        case(2, 19, 33, 7, tag="edge", flags=("segmented", "silu"), data=("state", "strided")),
        case(1, 77, 40, rows=5, tag="edge", flags=("packed", "silu"), data=("state", "empty_sequence", "no_bias")),
        case(1, 61, 70, 3, rows=3, tag="edge", flags=("segmented", "packed", "gelu"), data=("state",), dtype="float64"),
        case(3, 29, 40, tag="edge", flags=("gelu",), data=("strided",), dtype="bfloat16"),
        case(2, 37, 131, 1, tag="edge", flags=("segmented", "gelu"), data=("no_bias",), dtype="float16"),
    ]
    rg2b, rg9b = "RecurrentGemma-2B, lru_width 2560, 4 taps", "RecurrentGemma-9B, lru_width 4096, 4 taps"
    paper = "Hawk and Griffin 1.3B, D_RNN 2560, 4 taps, trained at T 2048"
    forward, backward = op == "temporal_conv1d", op == "temporal_conv1d_bwd"
    if forward:
        added, fla = ("silu", "residual"), "flash-linear-attention's ShortConvolution with a residual, hidden_size 2048"
        packed_too = ("segmented", "packed", *added)
        edge += [
            case(2, 67, 131, tag="edge", flags=("residual",), data=("strided", "state"), dtype="bfloat16"),
            case(1, 61, 70, rows=3, tag="edge", flags=packed_too, data=("state", "empty_sequence", "no_bias")),
        ]
    bench = [
        case(1, 2048, 2560, where="cpu", source=f"{rg2b}; {paper}"),
        case(1, 2048, 2560, where="cpu", dtype="bfloat16", source=rg2b, thorough=True),
        case(1, 2048, 4096, where="cpu", source=rg9b, thorough=True),
        case(8, 512, 2560, where="cpu", source=rg2b, flags=("segmented",), thorough=True),
    ]
    if forward:
        bench.append(case(1, 1024, 1024, where="cpu", source="Hawk and Griffin 100M, 4 taps, a prompt", thorough=True))
        bench.append(case(1, 2048, 2048, where="cpu", source=fla, flags=added, thorough=True))
        bench.append(case(8, 2048, 2048, where="gpu", dtype="bfloat16", source=fla, flags=added, thorough=True))
    for batch in (1, 8):
        for time in (2048, 8192):
            slow = backward and (batch, time) != (8, 2048)
            source = f"{rg2b}; {paper}" if time == 2048 else rg2b
            bench.append(case(batch, time, 2560, where="gpu", dtype="bfloat16", source=source, thorough=slow))
    documents: dict[str, Any] = {"flags": ("segmented",), "source": f"{paper}, documents"}
    bench.append(case(8, 2048, 2560, where="gpu", dtype="bfloat16", **documents, thorough=backward))
    packed: dict[str, Any] = {"flags": ("packed",), "data": ("state",), "source": f"{rg2b}, 16 prompts packed"}
    bench.append(case(1, 16384, 2560, rows=16, where="gpu", dtype="bfloat16", **packed, thorough=True))
    bench.append(case(8, 2048, 4096, where="gpu", dtype="bfloat16", source=rg9b, thorough=True))
    bench.append(case(8, 2048, 2560, where="gpu", source=rg2b, thorough=True))
    return (*smoke, *edge, *bench)


OP = Op(
    name="temporal_conv1d",
    summary="y_t = act(bias + sum_k weight[K-1-k] * x_{t-k}) + residual_t, per channel, within a document",
    call=Call,
    outputs={"y": TensorSpec("B T D"), "new_state": TensorSpec("N K-1 D")},
    reference=reference,
    cases=cases("temporal_conv1d"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("D",)),
    exact_dims=("K",),
    free_dims=("N",),
    minor_flags=MINOR_FLAGS,
    check=check,
)
