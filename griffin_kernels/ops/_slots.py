"""States of decoding in a pool: row b of a call works on row ``slots[b]`` of every state, or on row b without slots.

That is how a serving engine keeps sequences that come and go in one buffer (continuous batching). A negative slot marks
a row that only pads the batch to the size of a captured CUDA graph: it reads and writes no state, and its output is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels import errors


def check(batch: int, slots: Tensor | None, **states: Tensor) -> None:
    """Raise what is wrong with ``slots`` [B] for states [P, ...] by name: other sizes, and on a CPU rows out of reach.

    On a GPU the values are not looked at: that would wait for the device.
    """
    (first, pool), *others = [(name, state.shape[0]) for name, state in states.items()]
    for name, rows in others:
        if rows != pool:
            raise errors.ShapeError(f"{name} has {rows} rows, {first} has {pool}: one slot is a row of both")
    if slots is None:
        if pool != batch:
            raise errors.ShapeError(
                f"{first} has {pool} rows, the batch has {batch}; pass slots to say which row belongs to which"
            )
        return
    if slots.device.type != "cpu":
        return
    used = slots[slots >= 0]
    if used.numel() and int(used.max()) >= pool:
        raise errors.ArgumentError(f"slots has {int(used.max())}, but {first} has only rows 0 to {pool - 1}")
    if torch.unique(used).numel() != used.numel():
        raise errors.ArgumentError("slots names a row twice: two rows of the batch cannot share a state")


def rows(state: Tensor, slots: Tensor | None) -> Tensor:
    """[B, ...]: the states that the batch works on; any row in place of those that only pad."""
    return state if slots is None else state[slots.clamp_min(0)]


def updated(state: Tensor, slots: Tensor | None, new: Tensor) -> Tensor:
    """A new pool [P, ...] with the batch's rows ``new`` [B, ...] in their slots. Waits for no device."""
    if slots is None:
        return new
    if slots.shape[0] == 0:
        return state
    # which row of the batch owns a row of the pool, -1 for none; rows that only pad share one more
    owner = torch.full((state.shape[0] + 1,), -1, dtype=torch.int64, device=state.device)
    batch = torch.arange(slots.shape[0], device=state.device, dtype=torch.int64)
    owner[torch.where(slots < 0, state.shape[0], slots)] = batch
    owner = owner[:-1]
    mine = owner.reshape(-1, *[1] * (state.dim() - 1)) >= 0
    return torch.where(mine, new[owner.clamp_min(0)], state)


def write(state: Tensor, slots: Tensor | None, new: Tensor) -> None:
    """Put ``new`` [B, ...] into its slots, in place. Waits for no device; on a GPU the whole pool is rewritten."""
    if slots is None:
        state.copy_(new)
    elif state.device.type == "cpu":
        kept = slots >= 0
        state[slots[kept]] = new[kept].to(state.dtype)
    else:
        state.copy_(updated(state, slots, new.to(state.dtype)))


def silence(out: Tensor, slots: Tensor | None) -> Tensor:
    """``out`` [B, ...] with zeros in rows that only pad."""
    return out if slots is None else out.masked_fill((slots < 0).reshape(-1, *[1] * (out.dim() - 1)), 0.0)


def make(batch: int, pool: int, generator: torch.Generator) -> Tensor:
    """int64 [B]: different rows of the pool in random order, the last of three or more a padding row."""
    slots = torch.randperm(pool, generator=generator, dtype=torch.int64, device="cpu")[:batch]
    if batch >= 3:
        slots[-1] = -1
    return slots


def spread(state: Tensor, pool: int, slots: Tensor | None, generator: torch.Generator) -> Tensor:
    """Inputs for tests: ``state`` [B, ...] laid into a pool of random rows at its slots."""
    if slots is None:
        return state
    filled = torch.randn(pool, *state.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    return updated(filled.to(state.device, state.dtype), slots, state)
