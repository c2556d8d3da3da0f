"""Pools of states that a kernel reads and writes in place; see ``ops/_keep.py`` for what slots and keep mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels.ops._triton import tensors
from griffin_kernels.ops._triton.bundling import bundling


class Pool(NamedTuple):
    """States [P,D] as a ``State``; size: P. slots [N] contiguous; places: ``Rows`` of keep [B,T]."""

    states: Any
    size: Any
    slots: Any
    places: Any


def pool(states: Tensor, slots: Tensor, keep: Tensor) -> Pool:
    """The bundle of a pool [P,D] and of what a call names of it."""
    return Pool(tensors.state(states), states.shape[0], slots.contiguous(), tensors.rows(keep))


@triton.jit
def has(pool, rows):
    """Whether rows are in the pool: a scalar, or a tensor of them."""
    return (rows >= 0) & (rows < pool.size)


@triton.jit
def start(pool, sequence):
    """The row that a sequence starts from, -1 where it has no state."""
    slot = tl.load(pool.slots + sequence)
    return tl.where(has(pool, slot), slot, -1)


@bundling
def pool_at(pool, batch, time):
    """The pool of a batch entry from ``time`` on."""
    return Pool(pool.states, pool.size, pool.slots, tensors.at(pool.places, batch, time, 1))


@bundling
def pool_later(pool, steps):
    """The pool from ``steps`` steps later on."""
    return Pool(pool.states, pool.size, pool.slots, tensors.later(pool.places, steps))
