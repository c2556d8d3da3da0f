"""States of sequences in a pool: row ``slots[n]``, which sequence n starts from, and ``keep[b,t]``, where states go.

A serving engine keeps the states of many sequences in one buffer. A call goes on with some of them for some tokens, and
says for every token whether the state after it is kept, and in which row:

    prefill, or a piece of one      keep the last token's in the sequence's row
    prefix cache                    keep every M-th token's too, each in a row of its own
    speculative decoding            keep every token's; the next call starts from the row after the last accepted one
    padding                         slots and keep negative

Negative slots mark sequences without a state: they are fresh. A negative ``keep`` writes nothing. A sequence may be
kept in the row that it starts from: states are read before any is written. No other may: two tokens kept in one row,
or a row that another sequence starts from, are refused on a CPU. On a GPU values are not looked at, as that would wait
for the device: there a row of P or more counts as negative, and rows used twice hold either value.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import Case
from griffin_kernels.ops import _slots
from griffin_kernels.ops.rg_lru_extend.cost import CHECKPOINT


def check(call: Any, **pools: Tensor) -> None:
    """Raise what is wrong with the rows of pools [P, ...] that a call names: sizes, and on a CPU the rows."""
    (first, size), *others = [(name, pool.shape[0]) for name, pool in pools.items()]
    for name, rows in others:
        if rows != size:
            raise errors.ShapeError(f"{name} has {rows} rows, {first} has {size}: a slot is a row of both")
    for name, pool in pools.items():
        if size > 1 and pool.stride(0) == 0 and pool.numel():
            raise errors.ArgumentError(f"{name} has all of its rows in one place, expected memory for each")
    if call.slots.device.type != "cpu":
        return
    slots, keep = call.slots.tolist(), call.keep.flatten().tolist()
    ends = None if call.cu_seqlens is None else call.cu_seqlens.tolist()[1:]
    if ends is not None:
        keep = keep[: ends[-1]]  # the rest only pads
    for name, values in (("slots", slots), ("keep", keep)):
        if (largest := max(values, default=-1)) >= size:
            raise errors.ArgumentError(f"{name} has {largest}, but {first} has only rows 0 to {size - 1}")
    kept = {row: at for at, row in enumerate(keep) if row >= 0}
    if len(kept) < sum([row >= 0 for row in keep]):
        twice = next(row for at, row in enumerate(keep) if row >= 0 and kept[row] != at)
        raise errors.ArgumentError(f"keep names row {twice} twice: two tokens cannot be kept in one row")
    shared = kept.keys() & set(slots)
    if not shared:
        return
    time = call.keep.shape[1]
    for sequence, row in enumerate(slots):
        if row in shared:
            at = kept[row]
            owner = at // time if ends is None else bisect.bisect_right(ends, at)
            if owner != sequence:
                raise errors.ArgumentError(
                    f"keep has row {row} in sequence {owner}, but sequence {sequence} starts from it: "
                    "give one of them a row of its own"
                )


def known(rows: Tensor, pool: Tensor) -> Tensor:
    """``rows`` with -1 for those that the pool does not have."""
    return torch.where(rows < pool.shape[0], rows, -1)


def initial(pool: Tensor, slots: Tensor) -> Tensor:
    """[N, ...], contiguous: the states that sequences start from, zeros where there is none."""
    if pool.shape[0] == 0:
        return pool.new_zeros(slots.shape[0], *pool.shape[1:])
    slots = known(slots, pool)
    fresh = (slots < 0).reshape(-1, *[1] * (pool.dim() - 1))
    return pool.index_select(0, slots.clamp_min(0)).masked_fill_(fresh, 0.0)


FAR = 2**30
"""A position that no tap of a convolution reaches back from to its document's beginning."""


def positions(call: Any, pool: Tensor) -> Tensor:
    """int64 [B,T], 0 where a document begins: those given, else at the first step of each fresh sequence, and FAR."""
    if call.segment_pos is not None:
        given: Tensor = call.segment_pos
        return given
    (batch, time), slots = call.keep.shape, known(call.slots, pool)
    begins = torch.zeros(batch, time + 1, dtype=torch.bool, device=slots.device)
    if call.cu_seqlens is None:
        begins[:, 0] = slots < 0
    else:
        # a sequence without steps begins nothing: it marks the step behind the last, which is cut off
        offsets = call.cu_seqlens.long()
        marked = (slots < 0) & (offsets.diff() > 0)
        begins[0, torch.where(marked, offsets[:-1], time)] = True
    return torch.where(begins[:, :time], 0, FAR)


def updated(pool: Tensor, keep: Tensor, new: Tensor) -> Tensor:
    """A new pool [P, ...] with those of ``new`` [B, T, ...] that are kept in their rows. Waits for no device."""
    return _slots.updated(pool, known(keep, pool).flatten(), new.flatten(0, 1))


def write(pool: Tensor, keep: Tensor, new: Tensor) -> None:
    """Put those of ``new`` [B, T, ...] that are kept into their rows, in place. Waits for no device."""
    _slots.write(pool, known(keep, pool).flatten(), new.flatten(0, 1))


def windows(call: Any, window: Tensor, tokens: Tensor) -> Tensor:
    """[M,K-1,D]: the last K-1 inputs of a convolution at tokens int64 [M], counted through the batch; oldest first.

    Before a sequence comes its window, of [N,K-1,D]; inputs before the token's document are zeros. Waits for no device.
    """
    (_, time, _), rows = call.x.shape, window.shape[1]
    batch, sequence, begin = tokens // time, tokens // time, tokens // time * time
    if call.cu_seqlens is not None:
        offsets = call.cu_seqlens.long()
        sequence = torch.searchsorted(offsets[1:], tokens, right=True).clamp_max(window.shape[0] - 1)
        begin = offsets[sequence]
    age = torch.arange(rows - 1, -1, -1, device=tokens.device, dtype=torch.int64)
    at = tokens[:, None] - age  # [M, K-1]
    inside = (at - batch[:, None] * time).clamp_min(0)
    earlier = (at - begin[:, None] + rows).clamp(0, rows - 1)
    before = (at < begin[:, None])[..., None]
    found = torch.where(before, window[sequence[:, None], earlier], call.x[batch[:, None], inside])
    if call.segment_pos is not None:
        reach = call.segment_pos.reshape(-1)[tokens]
        found = found.masked_fill_((age > reach[:, None])[..., None], 0.0)
    return found


def write_windows(pool: Tensor, call: Any, window: Tensor) -> None:
    """Put the windows at the tokens that are kept into their rows, in place. Waits for no device.

    A GPU rewrites the whole pool.
    """
    keep = known(call.keep, pool).flatten()
    if 0 in (keep.numel(), pool.numel()):
        return
    if pool.device.type == "cpu":
        tokens = (keep >= 0).nonzero().squeeze(1)
        pool[keep[tokens]] = windows(call, window, tokens)
        return
    # the token that is kept in each row, or none
    owner = torch.full((pool.shape[0] + 1,), -1, dtype=torch.int64, device=pool.device)
    every = torch.arange(keep.numel(), dtype=torch.int64, device=pool.device)
    owner[torch.where(keep < 0, pool.shape[0], keep)] = every
    owner = owner[:-1]
    pool.copy_(torch.where((owner >= 0)[:, None, None], windows(call, window, owner.clamp_min(0)), pool))


def make(case: Case, offsets: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(slots [N], keep [B, T]) for tests, on the CPU.

    The last of two or more sequences is fresh, the one before the last of three or more pads; with ``fresh`` in the
    case's data all are fresh. Kept are the last steps; with ``checkpoints`` or ``every_token`` more, one of them where
    the sequence started from, as long as the pool has rows.
    """
    batch, time, count = case["B"], case["T"], case["N"]
    free = torch.randperm(case["P"], generator=generator, dtype=torch.int64, device="cpu").tolist()
    slots = [free.pop() if "fresh" not in case.data and n < max(count - 2, 1) and free else -1 for n in range(count)]
    bounds = list(range(0, batch * time + 1, time)) if offsets is None and time else [0] * (count + 1)
    bounds = bounds if offsets is None else offsets.tolist()
    keep = [-1] * (batch * time)
    apart = {"every_token": 1, "checkpoints": CHECKPOINT}
    step = next((apart[name] for name in case.data if name in apart), max(time, 1))
    for n, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if count >= 3 and n == count - 2:
            continue
        kept = list(range(end - 1, begin - 1, -step))
        drawn = torch.randint(max(len(kept), 1), (1,), generator=generator, dtype=torch.int64, device="cpu")
        home = kept[int(drawn)] if kept else -1
        for at in kept:
            keep[at] = slots[n] if at == home and slots[n] >= 0 else free.pop() if free else -1
    named, kept_in = (torch.tensor(rows, dtype=torch.int64, device="cpu") for rows in (slots, keep))
    return named, kept_in.reshape(batch, time)
