"""local_attention_step: one new token per row put into a ring of keys and values, and its attention to the ring.

    k_cache[r, p mod W] = k,  v_cache[r, p mod W] = v
    s_i = scale * q . k_cache[r, i],  s_i := softcap tanh(s_i / softcap) where softcap is given
    out = sum over visible i of softmax(s)_i v_cache[r, i]

p is the row's position in its document. The ring has W slots, the key of position p in slot p mod W. Once the new token
is in, slots 0 .. p have been written, or all: slot i is visible where i <= p. The order of the keys does not matter to
a softmax. What other slots hold (zeros, keys of an earlier document, NaN) does not matter.

r is the row of the batch, or slots[b], which row of a pool of P rings it works on; see ``ops/_slots.py``.
Query heads share key heads in order: head h of Hq reads head h // (Hq / Hkv) of Hkv (1 is multi-query attention).
No value of positions is checked: that would wait for the device. They are 0 or above.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _slots
from griffin_kernels.ops._arguments import Slots
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.local_attention import op as attention
from griffin_kernels.ops.local_attention_step.cost import FLAGS, NEAR, cost, make_case

NewKey = Annotated[Tensor, TensorSpec("B Hkv d")]
"""The new token's key or value."""

Ring = Annotated[Tensor, TensorSpec("P W Hkv d")]
"""Keys or values of the last W tokens of every row of a pool."""


class Call(NamedTuple):
    """The arguments of local_attention_step; see ``functional/local_attention_step.py``."""

    q: Annotated[Tensor, TensorSpec("B Hq d")]
    k: NewKey
    v: NewKey
    k_cache: Ring
    v_cache: Ring
    positions: Annotated[Tensor, TensorSpec("B", "int64", least=0)]
    slots: Slots = None
    softcap: float | None = None
    scale: float | None = None
    pad_slot: int = -1


def check(call: Call) -> None:
    """What the tensor specs cannot express."""
    window, shared = call.k_cache.shape[1:3]
    if window < 1:
        raise errors.ShapeError("k_cache has 0 slots, expected at least 1: the new token's own key is in it")
    attention.check_heads(call.q.shape[1], shared, "k_cache")
    attention.check_scores(call)
    _slots.check(call, k_cache=call.k_cache, v_cache=call.v_cache)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """out [B,Hq,d], and the rings [P,W,Hkv,d] afterwards."""
    q, k, v, k_cache, v_cache, positions, *_ = call
    slots, _ = _slots.of(call, k_cache.shape[0])
    batch, heads, width = q.shape
    window, shared = k_cache.shape[1:3]
    at = (torch.arange(batch, device=q.device, dtype=torch.int64), positions % window)
    keys, written = (_slots.rows(cache, slots).index_put(at, new) for cache, new in ((k_cache, k), (v_cache, v)))
    # the G query heads of a key head stand where scores_of has queries of G times: no ring is repeated for them
    grouped = q.reshape(batch, shared, heads // shared, width).transpose(1, 2)  # [B, G, Hkv, d]
    scores = attention.scores_of(call, grouped, keys)  # [B, Hkv, G, W]
    hidden = torch.arange(window, device=q.device, dtype=torch.int64) > positions[:, None]
    weights = torch.softmax(scores.masked_fill(hidden[:, None, None], -torch.inf), dim=3)
    values = written.masked_fill(hidden[:, :, None, None], 0.0)  # 0 times NaN does not count
    out = torch.einsum("bhgk,bkhd->bhgd", weights, values).flatten(1, 2)
    return _slots.silence(out, slots), _slots.updated(k_cache, slots, keys), _slots.updated(v_cache, slots, written)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal q (doubled, so that some keys stand out), k, v and rings, all of them full.

    With ``early`` in the case's data rows are at positions from 0 on, and slots not yet written hold large numbers.
    With ``slots`` the batch works on some of P rings, in random order.
    """
    draw = Draws(case, device, seed)
    batch, window, heads, shared, d, pool = (case[name] for name in ("B", "W", "Hq", "Hkv", "d", "P"))

    def normal(*shape: int) -> Tensor:
        return draw.data(draw.normal(*shape))

    def token(count: int) -> Tensor:
        return normal(batch, 2 * count, d)[:, ::2] if "strided" in case.data else normal(batch, count, d)

    def rings() -> Tensor:
        if "strided" in case.data:
            # head-major, every second channel of a longer buffer
            return normal(pool, shared, window + 3, 2 * d)[:, :, 1 : window + 1].transpose(1, 2)[..., ::2]
        return normal(pool, window, shared, d)

    positions = torch.randint(
        window - 1, 3 * window, (batch,), generator=draw.generator, dtype=torch.int64, device="cpu"
    )
    if "early" in case.data:
        positions = torch.linspace(0, window, batch, dtype=torch.float32, device="cpu").long()
    pad = 0 if "pad_zero" in case.data else -1
    slots = _slots.make(batch, pool, draw.generator, pad) if "slots" in case.data else None
    k_cache, v_cache = rings(), rings()
    for row, place in enumerate(positions.tolist()):
        ring = row if slots is None else int(slots[row])
        if ring >= 0 and ring != pad:
            for cache in (k_cache, v_cache):
                cache[ring, place:] = 1000.0  # what the new token is about to overwrite too
    return {
        "q": 2 * token(heads),
        "k": token(shared),
        "v": token(shared),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "positions": positions.to(device),
        "slots": None if slots is None else slots.to(device),
        "softcap": attention.SOFTCAP if "softcap" in case.flags else None,
        "scale": 0.7 * d**-0.5 if "scale" in case.data else None,
        "pad_slot": pad,
    }


def tolerance(case: Case) -> Tolerance:
    """That of local_attention for one query that sees W keys."""
    return attention.rounding(case.torch_dtype, case["d"], case["W"])


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    batch, heads, d = call.q.shape
    pool, window, shared, _ = call.k_cache.shape
    flags = FLAGS if call.softcap else ()
    return make_case(batch, window, heads, shared, d, dtype_name(call.q.dtype), flags, pool=pool, tag="call")


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 40, 4, 1, 16, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    edge = [
        make_case(1, 1, 1, 1, 1, tag="edge"),
        make_case(5, 33, 6, 2, 24, tag="edge", data=("early", "strided", "scale")),
        make_case(5, 33, 6, 2, 24, "bfloat16", tag="edge", data=("early", "strided", "scale")),
        make_case(4, 300, 10, 1, 40, tag="edge", data=("early",)),
        make_case(4, 300, 10, 1, 40, "bfloat16", tag="edge", data=("early",)),
        make_case(3, 70, 3, 3, 5, tag="edge", flags=FLAGS, data=("early",)),
        make_case(3, 70, 6, 2, 32, "bfloat16", tag="edge", flags=FLAGS, data=("strided",)),
        make_case(1, 1100, 7, 1, 64, tag="edge", flags=FLAGS),
        make_case(4, 33, 6, 2, 24, pool=7, tag="edge", data=("early", "slots", "strided")),
        make_case(3, 40, 10, 1, 32, "bfloat16", pool=3, tag="edge", flags=FLAGS, data=("slots",)),
        make_case(8, 33, 6, 2, 24, pool=9, tag="edge", data=("early", "slots", "pad_zero")),
    ]
    rg2b = "RecurrentGemma-2B: 10 heads of 256, one key head, window 2048"
    g1b = "Griffin 1.3B: 16 heads of 128, one key head, window 1024"
    g100m = "Griffin 100M: 6 heads of 128, one key head, window 1024"
    bench = []
    for where, dtype in (("cpu", "float32"), ("gpu", "bfloat16")):
        for window, heads, d, source in ((2048, 10, 256, rg2b), (1024, 16, 128, g1b), (1024, 6, 128, g100m)):
            for batch in (1, 16):
                kind, slow = "float32" if source == g100m else dtype, where == "cpu" and source != g100m
                bench.append(make_case(batch, window, heads, 1, d, kind, where=where, source=source, thorough=slow))
    bench += [
        make_case(batch, 2048, 10, 1, 256, "bfloat16", where="cpu", source=rg2b, thorough=True) for batch in (1, 16)
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="local_attention_step",
    summary="one new token per row into a ring of the last W keys, in place, and its attention to the ring",
    call=Call,
    outputs={"out": TensorSpec("B Hq d"), "k_cache": TensorSpec("P W Hkv d"), "v_cache": TensorSpec("P W Hkv d")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("Hkv", "Hq")),
    exact_dims=NEAR.exact_dims,
    free_dims=NEAR.free_dims,
    check=check,
    in_place=("k_cache", "v_cache"),
)
