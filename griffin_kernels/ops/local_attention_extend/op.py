"""local_attention_extend: several new tokens per row, their attention to a ring of keys and to each other.

    s_ti = scale * q_t . k_i,  s_ti := softcap tanh(s_ti / softcap) where softcap is given
    out_t = sum over visible i of softmax(s_t)_i v_i
    k_cache[r, p_t mod R] = k_t,  v_cache[r, p_t mod R] = v_t

The T tokens of row b go on at position positions[b] of its document: p_t = positions[b] + t. Token t sees the keys of
positions max(0, p_t - W + 1) .. p_t: those below positions[b] from the ring, where the key of position p is in slot
p mod R, the others from this call. With lengths, lengths[b] of the T tokens are real; the rest only pads, is written
nowhere and gives 0.

R is W + T - 1 or more. So no token takes a slot that this call sees; and a later call may begin at any of this call's
positions, as after the rejection of guessed tokens: the keys that it sees are all there still. What slots of other
positions hold (nothing yet, rejected tokens, an earlier document, NaN) does not matter.

r is the row of the batch, or slots[b], which row of a pool of P rings it works on; see ``ops/_slots.py``. With
block_table a ring is in pages of a pool, and R is pages * page size; see ``ops/_pages.py``.
Query heads share key heads in order: head h of Hq reads head h // (Hq / Hkv) of Hkv (1 is multi-query attention).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import ROWS, BenchCase, Case, Inputs, Op, TensorSpec, Tolerance, dtype_name
from griffin_kernels.ops import _pages, _slots
from griffin_kernels.ops._arguments import Slots
from griffin_kernels.ops._inputs import Draws
from griffin_kernels.ops.local_attention import op as attention
from griffin_kernels.ops.local_attention_extend.cost import FLAGS, cost, make_case

NewKeys = Annotated[Tensor, TensorSpec("B T Hkv d")]
"""Keys or values of the new tokens."""

Rings = Annotated[Tensor, TensorSpec("P R Hkv d")]
"""Keys or values of the last R tokens of every row of a pool; or pages of R tokens."""


class Call(NamedTuple):
    """The arguments of local_attention_extend; see ``functional/_attention.py``."""

    q: Annotated[Tensor, TensorSpec("B T Hq d")]
    k: NewKeys
    v: NewKeys
    k_cache: Rings
    v_cache: Rings
    positions: Annotated[Tensor, TensorSpec("B", "int64", least=0)]
    slots: Slots
    lengths: Annotated[Tensor | None, TensorSpec("B", "int64")]
    block_table: Annotated[Tensor | None, TensorSpec("B M", "int64")]
    window: int
    softcap: float | None = None
    scale: float | None = None
    pad_slot: int = -1


def rows_of(call: Call) -> Tensor | None:
    """int64 [B]: the ring that each row works on, or its first page; negative for none; None: ring b."""
    if call.block_table is not None:
        return _slots.marked(call.block_table[:, 0], call.pad_slot, call.k_cache.shape[0])
    return _slots.of(call, call.k_cache.shape[0]).read


def ring_of(call: Call) -> int:
    """R: the slots of a row's ring."""
    size = call.k_cache.shape[1]
    return size if call.block_table is None else size * call.block_table.shape[1]


def places_of(call: Call, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the keys of positions [B,n] into the caches; any place in place of those that do not exist."""
    if call.block_table is not None:
        return _pages.places(call, positions)
    slots = rows_of(call)
    rows = torch.arange(positions.shape[0], device=positions.device, dtype=torch.int64) if slots is None else slots
    return rows.clamp_min(0)[:, None].expand(positions.shape), positions % call.k_cache.shape[1]


def check(call: Call) -> None:
    """What the tensor specs cannot express."""
    time, ring, shared = call.q.shape[1], ring_of(call), call.k_cache.shape[2]
    attention.check_heads(call.q.shape[2], shared, "k_cache")
    attention.check_window(call.window)
    attention.check_scores(call)
    if ring < call.window + max(time, 1) - 1:
        room = "k_cache has" if call.block_table is None else "the pages of a row in block_table have"
        raise errors.ShapeError(
            f"{room} {ring} slots, expected window + tokens - 1 = {call.window + max(time, 1) - 1} or more: "
            "in fewer, new keys would take the slots of keys that are still seen"
        )
    if call.block_table is None:
        _slots.check(call, k_cache=call.k_cache, v_cache=call.v_cache)
    if call.lengths is not None and call.lengths.device.type == "cpu" and call.lengths.numel():
        low, high = map(int, torch.aminmax(call.lengths))
        if low < 0 or high > time:
            raise errors.ArgumentError(f"lengths has {low if low < 0 else high}, expected 0 to T={time}")
    if (rows := rows_of(call)) is not None and call.block_table is not None:
        lengths = torch.full_like(call.positions, time) if call.lengths is None else call.lengths
        _slots.check_apart(k_cache=call.k_cache, v_cache=call.v_cache)
        _pages.check(call, rows, lengths)


def real(call: Call) -> Tensor:
    """bool [B,T]: the tokens that do not only pad."""
    steps = torch.arange(call.q.shape[1], device=call.q.device, dtype=torch.int64)
    found = steps.expand(call.q.shape[0], -1) >= 0 if call.lengths is None else steps < call.lengths[:, None]
    slots = rows_of(call)
    return found if slots is None else found & (slots >= 0)[:, None]


def token_positions(call: Call) -> Tensor:
    """int64 [B,T]: p_t."""
    return call.positions[:, None] + torch.arange(call.q.shape[1], device=call.q.device, dtype=torch.int64)


def reference(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """out [B,T,Hq,d], and the rings [P,R,Hkv,d] afterwards."""
    q, k, v, k_cache, v_cache, positions, _, _, _, window, *_ = call
    batch, time, heads, width = q.shape
    shared = k_cache.shape[2]
    group, own = heads // shared, token_positions(call)
    # keys of positions p_0 - W + 1 .. p_(T-1), in order: from the ring, then new
    places = positions[:, None] + torch.arange(1 - window, time, device=q.device, dtype=torch.int64)
    visible = (places[:, None] > own[..., None] - window) & (places[:, None] <= own[..., None])
    visible = (visible & (places >= 0)[:, None]).repeat_interleave(group, dim=1)[:, None]  # [B, 1, T * G, W - 1 + T]
    earlier = places_of(call, places[:, : window - 1])
    keys, values = (torch.cat([cache[earlier], new], dim=1) for cache, new in ((k_cache, k), (v_cache, v)))
    # the G query heads of a key head stand where scores_of has queries of G times: no ring is repeated for them
    grouped = q.reshape(batch, time, shared, group, width).transpose(2, 3).reshape(batch, time * group, shared, width)
    scores = attention.scores_of(call, grouped, keys).masked_fill(~visible, -torch.inf)  # [B, Hkv, T * G, W - 1 + T]
    weights = torch.softmax(scores, dim=3).masked_fill(~visible, 0.0)
    out = attention.weighted(weights, visible, values).reshape(batch, time, group, shared, width)
    there = real(call)
    taken = there.nonzero(as_tuple=True)
    at = tuple(index[taken] for index in places_of(call, own))
    caches = [cache.index_put(at, new[taken]) for cache, new in ((k_cache, k), (v_cache, v))]
    return out.transpose(2, 3).reshape(q.shape).masked_fill(~there[..., None, None], 0.0), caches[0], caches[1]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Standard normal q (doubled, so that some keys stand out), k, v and rings, all of them full.

    Slots of keys that no token of this call sees hold large numbers. With ``early`` in the case's data rows are at
    positions from 0 on; with ``slots`` the batch works on some of P rings, in random order; with ``lengths`` some
    tokens only pad; with ``roomy`` rings have more slots than they need. With the flag ``paged`` rings are in pages, as
    many for each row as there can be and as large as they have to be; entries that nothing needs are negative.
    """
    draw = Draws(case, device, seed)
    batch, time, window, heads, shared, d, pool = (case[n] for n in ("B", "T", "W", "Hq", "Hkv", "d", "P"))
    pad = 0 if "pad_zero" in case.data else -1
    table = _pages.make(batch, pool, draw.generator, pad) if "paged" in case.flags else None
    ring = size = window + time - 1 + (5 if "roomy" in case.data else 0)
    if table is not None:
        size = -(-ring // table.shape[1])
        ring = size * table.shape[1]

    def normal(*shape: int) -> Tensor:
        return draw.data(draw.normal(*shape))

    def tokens(count: int) -> Tensor:
        if "strided" in case.data:
            return normal(batch, count, time, 2 * d).transpose(1, 2)[..., ::2]
        return normal(batch, time, count, d)

    def rings() -> Tensor:
        if "strided" in case.data:
            # head-major, every second channel of a longer buffer
            return normal(pool, shared, size + 3, 2 * d)[:, :, 1 : size + 1].transpose(1, 2)[..., ::2]
        return normal(pool, size, shared, d)

    low, high = (0, window + time) if "early" in case.data else (window, 3 * ring)
    positions = torch.randint(low, high, (batch,), generator=draw.generator, dtype=torch.int64, device="cpu")
    if "early" in case.data:
        positions[0] = 0
    slots = _slots.make(batch, pool, draw.generator, pad) if "slots" in case.data else None
    lengths = None
    if "lengths" in case.data:
        lengths = torch.linspace(0, time, batch, dtype=torch.float32, device="cpu").long().flip(0)
    k_cache, v_cache = rings(), rings()
    for row, place in enumerate(positions.tolist()):
        at = int(table[row, 0]) if table is not None else row if slots is None else int(slots[row])
        if at >= 0 and at != pad:
            seen = [place - back for back in range(1, min(window - 1, place) + 1)]
            unseen = torch.ones(ring, dtype=torch.bool, device="cpu")
            unseen[torch.tensor(seen, dtype=torch.int64, device="cpu") % ring] = False
            where = unseen.nonzero()[:, 0]
            pages = torch.full_like(where, at) if table is None else table[row, where // size]
            for cache in (k_cache, v_cache):
                cache[pages.to(device), (where % size).to(device)] = 1000.0
    if table is not None:
        # the first page marks rows that pad
        needed = _pages.needed(table, size, (positions - window + 1).clamp_min(0), positions + time - 1)
        table[:, 1:].masked_fill_(~needed[:, 1:], -1)
    return {
        "q": 2 * tokens(heads),
        "k": tokens(shared),
        "v": tokens(shared),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "positions": positions.to(device),
        "slots": None if slots is None else slots.to(device),
        "lengths": None if lengths is None else lengths.to(device),
        "block_table": None if table is None else table.to(device),
        "window": window,
        "softcap": attention.SOFTCAP if "softcap" in case.flags else None,
        "scale": 0.7 * d**-0.5 if "scale" in case.data else None,
        "pad_slot": pad,
    }


def tolerance(case: Case) -> Tolerance:
    """That of local_attention for queries that see W keys."""
    return attention.rounding(case.torch_dtype, case["d"], case["W"])


def case_of(call: Call) -> Case:
    """The case that a real call is."""
    batch, time, heads, d = call.q.shape
    pool, _, shared, _ = call.k_cache.shape
    flags = [name for name, has in zip(FLAGS, (call.softcap, call.block_table is not None), strict=True) if has]
    return make_case(batch, time, call.window, heads, shared, d, dtype_name(call.q.dtype), flags, pool=pool, tag="call")


def cases() -> tuple[BenchCase, ...]:
    smoke = [make_case(2, 3, 40, 4, 1, 16, dtype, tag="smoke") for dtype in DTYPE_BYTES]
    edge = [
        make_case(1, 1, 1, 1, 1, 1, tag="edge"),
        make_case(2, 2, 1, 2, 2, 5, tag="edge", data=("roomy",)),
        make_case(5, 4, 33, 6, 2, 24, tag="edge", data=("early", "strided", "scale", "lengths")),
        make_case(5, 4, 33, 6, 2, 24, "bfloat16", tag="edge", data=("early", "strided", "scale", "lengths")),
        make_case(3, 8, 300, 10, 1, 40, tag="edge", data=("early", "roomy")),
        make_case(3, 8, 300, 10, 1, 40, "bfloat16", tag="edge", data=("early", "roomy")),
        make_case(4, 5, 40, 3, 3, 5, pool=7, tag="edge", flags=("softcap",), data=("early", "slots", "lengths")),
        make_case(3, 2, 70, 6, 2, 32, "bfloat16", pool=3, tag="edge", flags=("softcap",), data=("slots", "strided")),
        make_case(8, 3, 33, 6, 2, 24, pool=9, tag="edge", data=("early", "slots", "pad_zero")),
        make_case(2, 70, 45, 4, 2, 16, tag="edge", data=("early", "lengths", "roomy")),
        make_case(2, 70, 45, 4, 2, 16, "bfloat16", tag="edge", flags=("softcap",), data=("early",)),
        make_case(4, 3, 33, 6, 2, 24, pool=22, tag="edge", flags=("paged",), data=("early", "lengths", "strided")),
        make_case(3, 5, 40, 6, 2, 32, "bfloat16", pool=10, tag="edge", flags=("softcap", "paged"), data=("pad_zero",)),
    ]
    rg2b = "RecurrentGemma-2B: 10 heads of 256, one key head, window 2048"
    verify, chunk = f"{rg2b}; 4 tokens to verify", f"{rg2b}; a chunk of a prefill"
    paged, in_pages = ("paged",), f"{verify}, pages of 16 keys"
    bench = [
        make_case(1, 4, 2048, 10, 1, 256, where="cpu", source=verify),
        make_case(4, 4, 2048, 10, 1, 256, "bfloat16", where="cpu", source=verify, thorough=True),
        make_case(1, 256, 2048, 10, 1, 256, where="cpu", source=chunk, thorough=True),
        make_case(1, 4, 2048, 10, 1, 256, "bfloat16", where="gpu", source=verify),
        make_case(16, 4, 2048, 10, 1, 256, "bfloat16", where="gpu", source=verify, thorough=True),
        make_case(1, 4, 2048, 10, 1, 256, "bfloat16", paged, pool=129, where="gpu", source=in_pages, thorough=True),
        make_case(4, 512, 2048, 10, 1, 256, "bfloat16", where="gpu", source=chunk, thorough=True),
    ]
    return (*smoke, *edge, *bench)


OP = Op(
    name="local_attention_extend",
    summary="several new tokens per row into a ring of keys, in place, and their attention to the ring and each other",
    call=Call,
    outputs={"out": TensorSpec("B T Hq d"), "k_cache": TensorSpec("P R Hkv d"), "v_cache": TensorSpec("P R Hkv d")},
    reference=reference,
    cases=cases(),
    make_inputs=make_inputs,
    cost=cost,
    tolerance=tolerance,
    case_of=case_of,
    splits=(ROWS, ("Hkv", "Hq")),
    exact_dims=("Hkv", "d"),
    free_dims=("P",),
    minor_flags=("paged",),
    check=check,
    in_place=("k_cache", "v_cache"),
)
