"""local_attention: softmax attention of every query to the last W keys of its own document. The contract.

    s_tk = scale * q_t . k_k,  s_tk := softcap tanh(s_tk / softcap) where softcap is given
    out_t = sum over visible k of softmax(s_t)_k v_k,   lse_t = log sum over visible k of exp(s_tk)

The T queries are the last T of S >= T positions, so that keys kept from earlier calls come first: query t has key
index e_t = t + S - T. It sees keys first_t .. e_t, itself included: first_t is e_t - W + 1, or where t's document
begins if that is later: at e_t - segment_pos_t, and not before the packed sequence. Keys before index 0 are not given;
without segment_pos all S are of one document. Packed sequences bring no earlier keys: S is T, unless cu_seqlens_k
says which keys are whose. The queries of each sequence are then the last of its own keys.
With ``right`` above 0 it also sees the keys after its own up to e_t + right, or up to the last key, or to where t's
document ends if that is earlier: before the next query at position 0, and within the packed sequence.

Where there are more queries than keys, in a call or in a sequence of cu_seqlens_k, the first ones come before the first
key: e_t is below it. They see what of e_t + right reaches it, or nothing: out is then 0 and lse -inf. With cu_seqlens_k
queries after the last sequence see nothing either, and keys after it are seen by none.

Query heads share key heads in order: head h of Hq reads head h // (Hq / Hkv) of Hkv (1 is multi-query attention).
lse is float32 (natural logarithm), wanted by the backward pass and by who asks: None unless ``with_lse``.

DeepMind's published mask lets W + 1 keys through; transformers and this op W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import (
    LARGEST_INDEX,
    ROWS,
    BenchCase,
    Case,
    Inputs,
    Op,
    TensorSpec,
    Tolerance,
    dtype_name,
    roundings,
)
from griffin_kernels.ops._arguments import Offsets
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.linear_scan.op import check_cu_seqlens
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys
from griffin_kernels.ops.local_attention.cost import FLAGS, NEAR, PACKED_KEYS, cost, make_case, right_of

SOFTCAP = 4.0
"""The softcap of cases that have one; their scores have a standard deviation near 2, so that it bends them."""

REFERENCE_ROWS = 128
"""Queries that the reference treats at a time: real shapes would need terabytes of scores otherwise."""

Queries = Annotated[Tensor, TensorSpec("B T Hq d")]
"""Queries, or what has their shape."""

Keys = Annotated[Tensor, TensorSpec("B S Hkv d")]
"""Keys or values."""

Documents = Annotated[Tensor | None, TensorSpec("B T", "int64", least=-LARGEST_INDEX)]
"""Each query's position in its document. One below 0, as some mark padding, counts as 0: every query sees itself."""


class Call(NamedTuple):
    """The arguments of local_attention; see ``functional/local_attention.py``. with_lse: whether lse is wanted.

    right: keys after a query's own that it sees.
    """

    q: Queries
    k: Keys
    v: Keys
    segment_pos: Documents
    cu_seqlens: Offsets
    cu_seqlens_k: Offsets
    window: int
    softcap: float | None = None
    scale: float | None = None
    with_lse: bool = False
    right: int = 0


def check(call: Any) -> None:
    """What the tensor specs cannot express, of local_attention and of its backward.

    Raises ArgumentError or ShapeError for heads that do not divide, too few keys, bad window, options or offsets.
    """
    time, keys = call.q.shape[1], call.k.shape[1]
    check_heads(call.q.shape[2], call.k.shape[2], "k")
    if time and not keys:
        raise errors.ShapeError(f"k has no keys for the {time} queries of q: expected one or more")
    check_window(call.window)
    if call.right < 0:
        raise errors.ArgumentError(f"right is {call.right}, expected 0 or more keys after a query's own that it sees")
    check_scores(call)
    check_offsets_of_keys(call.cu_seqlens, call.cu_seqlens_k)
    if call.cu_seqlens is not None:
        if keys != time and call.cu_seqlens_k is None:
            raise errors.ShapeError(
                f"k has {keys} keys for the {time} queries of q: with cu_seqlens, expected one for each query, "
                "or cu_seqlens_k with the offsets of the keys"
            )
        check_cu_seqlens(call.cu_seqlens, batch=call.q.shape[0], total=time)
    if call.cu_seqlens_k is not None:
        check_cu_seqlens(call.cu_seqlens_k, batch=call.q.shape[0], total=keys, name="cu_seqlens_k", dim="S")


def check_offsets_of_keys(cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    """Raise ArgumentError for offsets of keys without those of queries."""
    if cu_seqlens is None and cu_seqlens_k is not None:
        raise errors.ArgumentError("cu_seqlens_k is given without cu_seqlens: pass the offsets of the queries too")


def check_window(window: int) -> None:
    """Raise ArgumentError for a window of no key."""
    if window < 1:
        raise errors.ArgumentError(f"window is {window}, expected at least 1 (a query sees itself)")


def check_heads(heads: int, shared: int, keys: str) -> None:
    """Raise ShapeError where the heads of q do not divide among those of the argument called ``keys``."""
    if shared < 1 or heads % shared:
        raise errors.ShapeError(
            f"q has {heads} heads and {keys} has {shared}: the first must be a multiple of the second"
        )


def check_scores(call: Any) -> None:
    """Raise ArgumentError for a bad softcap or scale."""
    if call.softcap is not None and not (math.isfinite(call.softcap) and call.softcap > 0):
        raise errors.ArgumentError(f"softcap is {call.softcap}, expected a finite number above 0, or None")
    if call.scale is not None and not math.isfinite(call.scale):
        raise errors.ArgumentError(f"scale is {call.scale}, expected a finite number, or None for head_dim ** -0.5")


def scale_of(call: Any) -> float:
    """The factor of scores."""
    factor: float = call.q.shape[-1] ** -0.5 if call.scale is None else call.scale
    return factor


def rows_and_columns(call: Any) -> Iterator[tuple[slice, slice, Tensor]]:
    """All queries, a few at a time: (queries, the keys that some see, which each sees: bool [B or 1, 1, t, k])."""
    time, earlier = call.q.shape[1], call.k.shape[1] - call.q.shape[1]
    first, last = first_keys(call), last_keys(call)
    for start in range(0, time, REFERENCE_ROWS):
        end = min(start + REFERENCE_ROWS, time)
        low, high = max(0, start + earlier - call.window + 1), min(end + earlier + call.right, call.k.shape[1])
        if call.cu_seqlens_k is not None:
            low, high = int(first[:, start:end].min()), int(last[:, start:end].max()) + 1
        high = max(low, high)
        keys = torch.arange(low, high, device=call.q.device, dtype=torch.int64)
        visible = ((keys >= first[:, start:end, None]) & (keys <= last[:, start:end, None]))[:, None]
        yield slice(start, end), slice(low, high), visible


def scores_of(call: Any, q: Tensor, k: Tensor) -> Tensor:
    """[B,H,t,k] from q [B,t,H,d] and k [B,k,H,d]."""
    scores = torch.einsum("bthd,bkhd->bhtk", q, k) * scale_of(call)
    return scores if call.softcap is None else call.softcap * torch.tanh(scores / call.softcap)


def weighted(weights: Tensor, visible: Tensor, rows: Tensor) -> Tensor:
    """sum over visible j of weights_ij rows_j: [B,H,i,j], bool [B or 1,1,i,j], [B,j,H,d] -> [B,i,H,d].

    weights are 0 where nothing is visible, and rows there may be anything: 0 times NaN does not count.
    """
    usable = rows.isfinite()
    total = torch.einsum("bhij,bjhd->bihd", weights, torch.where(usable, rows, 0.0))
    for j in (~usable).any(3).any(2).any(0).nonzero()[:, 0].tolist():
        share = weights[..., j, None] * torch.where(usable[:, j], 0.0, rows[:, j])[:, :, None]  # [B,H,i,d]
        total = total + torch.where(visible[..., j, None], share, 0.0).transpose(1, 2)
    return total


def reference(call: Call) -> tuple[Tensor, Tensor | None]:
    """The formulas at the top of this file, for a few queries at a time. Differentiable."""
    q, group = call.q, call.q.shape[2] // call.k.shape[2]
    k, v = call.k.repeat_interleave(group, dim=2), call.v.repeat_interleave(group, dim=2)
    out, lse = [q[:, :0]], [q.new_empty(q.shape[0], q.shape[2], 0)]
    for rows, columns, visible in rows_and_columns(call):
        scores = scores_of(call, q[:, rows], k[:, columns]).masked_fill(~visible, -torch.inf)
        weights = torch.softmax(scores, dim=3).masked_fill(~visible, 0.0)
        out.append(weighted(weights, visible, v[:, columns]))
        lse.append(torch.logsumexp(scores, dim=3))
    return torch.cat(out, dim=1), torch.cat(lse, dim=2) if call.with_lse else None


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal q (doubled, so that some keys stand out), k, v and the case's options."""
    draw = Draws(case, device, seed)
    batch, time, keys, heads, shared, d = (case[name] for name in ("B", "T", "S", "Hq", "Hkv", "d"))

    def normal(*shape: int) -> Tensor:
        if "strided" in case.data:
            # head-major, every second channel: as a projection split into heads gives it, and worse
            b, t, h, n = shape
            return draw.data(draw.normal(b, h, t, 2 * n)).transpose(1, 2)[..., ::2]
        return draw.data(draw.normal(*shape))

    inputs: Inputs = {"q": 2 * normal(batch, time, heads, d)}
    inputs |= {name: normal(batch, keys, shared, d) for name in ("k", "v")}
    inputs |= {"segment_pos": None, "cu_seqlens": draw.offsets() if "packed" in case.flags else None}
    inputs["cu_seqlens_k"] = draw.offsets(keys) if PACKED_KEYS in case.flags else None
    if "segmented" in case.flags:
        steps = max(time, keys)
        inputs["segment_pos"] = draw.positions(steps)[:, steps - time :]
    return inputs | {
        "window": case["W"],
        "softcap": SOFTCAP if "softcap" in case.flags else None,
        "scale": 0.7 * d**-0.5 if "scale" in case.data else None,
        "with_lse": "lse" in case.data,
        "right": right_of(case),
    }


def tolerance(case: Case) -> Tolerance:
    """Rounding of scores, probabilities and sums over the keys that a query sees."""
    return rounding(case.torch_dtype, case["d"], min(case["W"] + right_of(case), case["S"]))


def rounding(dtype: torch.dtype, d: int, keys: int) -> Tolerance:
    """Of attention to ``keys`` keys of ``d`` channels."""
    # A score is a sum of d products: its error, |s| sqrt(d) u with |s| near 4 in a row's heaviest keys, is the
    # relative error of a probability. Sums over W keys add sqrt(W) u. For data in half precision, probabilities and
    # the output are rounded to it. Errors of a row's keys are independent, so they shrink as the output itself does.
    unit, half = roundings(dtype)
    sums = (4 * d**0.5 + keys**0.5 + 8) * unit
    return Tolerance(rel_norm=sums + 2 * half, worst=8 * sums + 6 * half)


def case_of(call: Any, op: str = "local_attention") -> Case:
    """The case that a real call is, of local_attention or of its backward."""
    batch, time, heads, d = call.q.shape
    keys, shared = call.k.shape[1:3]
    packed = call.cu_seqlens is not None
    rows = call.cu_seqlens.shape[0] - 1 if packed else batch
    present = {"softcap": bool(call.softcap), "segmented": call.segment_pos is not None, "packed": packed}
    flags = [flag for flag in FLAGS if present[flag]]
    if call.cu_seqlens_k is not None:
        flags.append(PACKED_KEYS)
    data = ("lse",) if getattr(call, "with_lse", False) else ()
    if getattr(call, "dlse", None) is not None:
        data = ("dlse",)
    # a window beyond the keys is the same problem as one that just covers them, and so are keys beyond the window
    window = min(call.window, max(keys, 1))
    sizes = (batch, time, heads, shared, d, window)
    keys = keys if PACKED_KEYS in flags else min(keys, time + window - 1)
    right = min(call.right, max(time - 1, 0))
    facts = {"keys": keys, "rows": rows, "right": right, "op": op, "data": data, "tag": "call"}
    return make_case(*sizes, dtype_name(call.q.dtype), flags, **facts)


def cases(op: str) -> tuple[BenchCase, ...]:
    """The table of cases, shared by local_attention and its backward, for which a window of 1 is no case:

    a query that sees one key has no gradient to q and k, and a relative error of zero means nothing.
    """
    backward = op.endswith("_bwd")

    def case(*sizes: int, data: tuple[str, ...] = (), **facts: object) -> BenchCase:
        if backward:
            data = tuple(item for item in data if item != "lse")
        return make_case(*sizes, op=op, data=data, **facts)  # type: ignore[arg-type]

    smoke = [case(2, 75, 4, 1, 16, 20, dtype=d, tag="smoke", data=("lse",)) for d in DTYPE_BYTES]
    forward_only = [
        case(2, 75, 4, 1, 16, 20, tag="smoke"),
        case(1, 1, 1, 1, 1, 1, tag="edge", data=("lse",)),
        case(2, 70, 2, 2, 5, 1, tag="edge", data=("lse",)),
        case(2, 45, 4, 2, 16, 20, keys=75, tag="edge", data=("strided",)),
        case(3, 1, 4, 2, 16, 24, keys=61, tag="edge", flags=("segmented",)),
    ]
    edge = [
        case(1, 200, 4, 2, 24, 300, tag="edge", data=("lse", "strided", "scale")),
        case(2, 130, 6, 2, 8, 33, tag="edge", flags=("softcap",), data=("lse", "strided")),
        case(2, 150, 2, 1, 16, 64, tag="edge", flags=("segmented",), data=("lse",)),
        case(1, 140, 3, 1, 16, 40, rows=4, tag="edge", flags=("packed",), data=("lse", "empty_sequence")),
        case(1, 140, 4, 2, 16, 40, rows=3, tag="edge", flags=FLAGS, dtype="bfloat16", data=("lse",)),
        case(1, 140, 4, 2, 16, 40, rows=3, tag="edge", flags=FLAGS),
    ]
    carried = [case(2, 45, 4, 1, 16, 20, keys=75, dtype=d, tag="smoke", data=("lse",)) for d in ("float32", "bfloat16")]
    for dtype in ("float32", "bfloat16"):
        more = {"dtype": dtype, "tag": "edge"}
        carried += [
            case(2, 70, 4, 2, 24, 33, keys=170, data=("lse", "strided", "scale"), **more),  # 68 keys are out of reach
            case(3, 90, 6, 2, 8, 300, keys=130, flags=("softcap", "segmented"), data=("lse", "strided"), **more),
            case(2, 1, 4, 2, 16, 40, keys=40, data=("lse",), **more),
            case(4, 1, 4, 1, 16, 24, keys=61, flags=("softcap", "segmented"), data=("lse", "strided"), **more),
        ]
    backward_only = [
        case(2, 90, 6, 2, 8, 33, tag="edge", flags=("softcap",), data=("strided", "dlse")),
        case(1, 140, 4, 1, 16, 40, rows=3, tag="edge", flags=("packed",), dtype="bfloat16", data=("dlse",)),
        case(2, 45, 4, 2, 16, 20, keys=75, tag="edge", flags=("segmented",), data=("dlse",)),
    ]
    rg2b = "RecurrentGemma-2B: 10 heads of 256, one key head"
    rg9b = "RecurrentGemma-9B: 16 heads of 256, one key head"
    both_ways = [
        case(2, 75, 4, 1, 16, 20, right=9, tag="smoke", data=("lse",)),
        case(1, 140, 4, 2, 16, 40, right=70, rows=3, tag="edge", flags=FLAGS, data=("lse",)),
        case(2, 45, 4, 2, 8, 20, keys=75, right=13, dtype="bfloat16", tag="edge", flags=("segmented",), data=("lse",)),
    ]
    beside = ("packed", PACKED_KEYS)
    other_keys = [
        case(1, 60, 4, 2, 16, 20, keys=110, rows=4, tag="smoke", flags=beside, data=("lse",)),
        case(1, 60, 4, 1, 8, 24, keys=50, rows=5, tag="edge", flags=(*FLAGS, PACKED_KEYS), data=("lse",)),
        case(1, 70, 4, 2, 16, 30, keys=90, right=9, rows=3, dtype="bfloat16", tag="edge", flags=beside, data=("lse",)),
        case(2, 75, 4, 2, 16, 20, keys=45, tag="smoke", data=("lse",)),
        case(2, 60, 4, 1, 8, 20, keys=33, right=13, dtype="bfloat16", tag="edge", flags=("segmented",), data=("lse",)),
    ]
    paper = "Griffin 1.3B: 16 heads of 128, one key head, window 1024"
    bench = [
        case(1, 2048, 10, 1, 256, 512, where="cpu", source=f"{rg2b}, a quarter of its window"),
        case(1, 2048, 16, 1, 128, 1024, where="cpu", source=paper, thorough=True),
        case(1, 2048, 10, 1, 256, 512, where="cpu", dtype="bfloat16", source=rg2b, thorough=backward),
        case(1, 1024, 6, 1, 128, 1024, where="cpu", source="Griffin 100M: 6 heads of 128", thorough=backward),
        case(1, 4096, 10, 1, 256, 1024, where="cpu", source=f"{rg2b}, half its window", thorough=True),
        case(1, 1024, 16, 1, 256, 512, where="cpu", source=f"{rg9b}, a quarter of its window", thorough=True),
        case(1, 2048, 16, 1, 128, 1024, where="cpu", flags=("segmented",), source=f"{paper}, documents", thorough=True),
    ]
    for heads, d, window, source in ((10, 256, 2048, rg2b), (16, 256, 2048, rg9b), (16, 128, 1024, paper)):
        for batch in (1, 8):
            for time in (2048, 8192):
                sizes, slow = (batch, time, heads, 1, d, window), heads * d == 4096
                bench.append(case(*sizes, where="gpu", dtype="bfloat16", source=source, thorough=slow))
    bench.append(
        case(
            8, 2048, 16, 1, 128, 1024, where="gpu", dtype="bfloat16", flags=("segmented",), source=f"{paper}, documents"
        )
    )
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        source = f"{rg2b}, the second half of a prompt"
        bench.append(case(1, 2048, 10, 1, 256, 2048, keys=4095, where=where, dtype=dtype, source=source, thorough=True))
    both = "an encoder: 16 heads of 128, windows of 512 to either side"
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        bench.append(case(1, 2048, 16, 1, 128, 512, right=511, where=where, dtype=dtype, source=both, thorough=True))
    return (*smoke, *(backward_only if backward else forward_only), *edge, *carried, *both_ways, *other_keys, *bench)


OP = Op(
    name="local_attention",
    summary="softmax attention to the last W keys of the same document, causal unless ``right`` says how many follow",
    call=Call,
    outputs={"out": TensorSpec("B T Hq d"), "lse": TensorSpec("B Hq T", "accumulator", optional=True)},
    reference=reference,
    cases=cases("local_attention"),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("Hkv", "Hq")),
    # S is matched like T and W, by nearness: case_of keeps max(T, W) <= S < T + W, so that it never excludes what is
    # near in T and W by more than a factor of two, and among those prefers the like: keys carried, or none
    exact_dims=NEAR.exact_dims,
    free_dims=NEAR.free_dims,
    minor_flags=NEAR.minor_flags,
    check=check,
)
