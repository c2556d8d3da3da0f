"""States of decoding in a pool: row b of a call works on row ``slots[b]`` of every state, or on row b without slots.

That is how a serving engine keeps sequences that come and go in one buffer (continuous batching). A slot that is
negative, or ``pad_slot``, marks a row that only pads the batch to the size of a captured CUDA graph: it reads and
writes no state, and its output is 0. With ``dst_slots`` the new state goes to another row of the pool than the old one
came from, and nowhere where that is negative or ``pad_slot``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors


class PoolRows(NamedTuple):
    """Rows of the pool by row of the batch, int64 [B]: that old states are read from, that new ones are written to.

    Negative for none. None: row b.
    """

    read: Tensor | None
    written: Tensor | None


def of(call: Any, pool: int) -> PoolRows:
    """The rows of a call, by its ``slots``, ``pad_slot`` and perhaps ``dst_slots``. Waits for no device."""
    if call.slots is None:
        return PoolRows(None, None)
    read = marked(call.slots, call.pad_slot, pool)
    if (others := getattr(call, "dst_slots", None)) is None:
        return PoolRows(read, read)
    return PoolRows(read, torch.where(read < 0, read, marked(others, call.pad_slot, pool)))


def marked(slots: Tensor, pad_slot: int, pool: int) -> Tensor:
    """Slots with -1 for those that pad."""
    if slots.device.type != "cpu":  # not checked there
        return slots.masked_fill((slots == pad_slot) | (slots >= pool), -1)
    return slots if pad_slot < 0 else slots.masked_fill(slots == pad_slot, -1)


def check(call: Any, **states: Tensor) -> None:
    """Raise what is wrong with a call's slots for states [P, ...] by name: other sizes, and on a CPU rows out of reach.

    On a GPU the values are not looked at: that would wait for the device.
    """
    batch, slots, dst_slots = call[0].shape[0], call.slots, getattr(call, "dst_slots", None)
    (first, pool), *others = [(name, state.shape[0]) for name, state in states.items()]
    for name, count in others:
        if count != pool:
            raise errors.ShapeError(f"{name} has {count} rows, {first} has {pool}: one slot is a row of both")
    check_apart(**states)
    if slots is None:
        if dst_slots is not None or call.pad_slot >= 0:
            given = f"pad_slot is {call.pad_slot}" if dst_slots is None else "dst_slots is given"
            raise errors.ArgumentError(f"{given} without slots: pass the rows that states are read from as slots")
        if pool != batch:
            raise errors.ShapeError(
                f"{first} has {pool} rows, the batch has {batch}; pass slots to say which row belongs to which"
            )
        return
    if slots.device.type != "cpu":
        return
    read, written = of(call, pool)
    assert read is not None and written is not None
    used = _in_reach("slots", read, first, pool)
    if dst_slots is None:
        if torch.unique(used).numel() != used.numel():
            raise errors.ArgumentError("slots names a row twice: two rows of the batch cannot share a state")
        return
    kept = _in_reach("dst_slots", written, first, pool)
    if torch.unique(kept).numel() != kept.numel():
        raise errors.ArgumentError("dst_slots names a row twice: one row of the pool cannot keep two states")
    shared = (written[:, None] == read) & (written >= 0)[:, None]
    if bool(shared.fill_diagonal_(False).any()):
        at = int(written[shared.any(1)][0])
        raise errors.ArgumentError(f"dst_slots has {at}, whose state another row of the batch reads: write elsewhere")


def check_apart(**states: Tensor) -> None:
    """Raise where rows of a pool [P, ...] by name are one row."""
    for name, state in states.items():
        if state.shape[0] > 1 and state.stride(0) == 0 and state.numel():
            raise errors.ArgumentError(f"{name} has all of its rows in one place, expected memory for each")


def _in_reach(name: str, rows: Tensor, state: str, pool: int) -> Tensor:
    """Those that are rows, all of them rows of the pool."""
    used = rows[rows >= 0]
    if used.numel() and int(used.max()) >= pool:
        raise errors.ArgumentError(f"{name} has {int(used.max())}, but {state} has only rows 0 to {pool - 1}")
    return used


def rows(state: Tensor, read: Tensor | None) -> Tensor:
    """[B, ...]: the states that the batch works on; any row in place of those that only pad."""
    return state if read is None else state[read.clamp_min(0)]


def updated(state: Tensor, written: Tensor | None, new: Tensor) -> Tensor:
    """A new pool [P, ...] with the batch's rows ``new`` [B, ...] where they are written. Waits for no device."""
    if written is None:
        return new
    if written.shape[0] == 0:
        return state
    # which row of the batch owns a row of the pool, -1 for none; rows that only pad share one more
    owner = torch.full((state.shape[0] + 1,), -1, dtype=torch.int64, device=state.device)
    batch = torch.arange(written.shape[0], device=state.device, dtype=torch.int64)
    owner[torch.where(written < 0, state.shape[0], written)] = batch
    owner = owner[:-1]
    mine = owner.reshape(-1, *[1] * (state.dim() - 1)) >= 0
    return torch.where(mine, new[owner.clamp_min(0)], state)


def write(state: Tensor, written: Tensor | None, new: Tensor) -> None:
    """Put ``new`` [B, ...] where it is written, in place. Waits for no device; a GPU rewrites the whole pool."""
    if written is None:
        state.copy_(new)
    elif state.device.type == "cpu":
        kept = written >= 0
        state[written[kept]] = new[kept].to(state.dtype)
    else:
        state.copy_(updated(state, written, new.to(state.dtype)))


def silence(out: Tensor, read: Tensor | None) -> Tensor:
    """``out`` [B, ...] with zeros in rows that only pad."""
    return out if read is None else out.masked_fill((read < 0).reshape(-1, *[1] * (out.dim() - 1)), 0.0)


def make(batch: int, pool: int, generator: torch.Generator, pad_slot: int = -1) -> Tensor:
    """int64 [B]: different rows of the pool in random order, the last of three or more a padding row.

    pad_slot: 0 or more for a row of the pool that pads; then a quarter of the batch does, and one at least.
    """
    slots = torch.randperm(pool, generator=generator, dtype=torch.int64, device="cpu")
    if pad_slot >= 0:
        slots = slots[slots != pad_slot][:batch]
        padding = max(1, batch // 4)
        return torch.cat([slots[: batch - padding], slots.new_full((padding,), pad_slot)])
    slots = slots[:batch]
    if batch >= 3:
        slots[-1] = -1
    return slots


def make_others(slots: Tensor, pool: int, pad_slot: int = -1) -> Tensor:
    """int64 [B]: where new states may go: rows that ``slots`` does not name, the old one for the first of the batch.

    Where rows run out, those that are left keep nothing.
    """
    used = {*slots.tolist(), pad_slot}
    free = [row for row in range(pool) if row not in used]
    others = slots.new_tensor((free + [-1] * len(slots))[: len(slots)])
    others[:1] = slots[:1]
    return others
