"""Rings of keys in pages of a pool: ring slot s of row b is row s % size of page block_table[b, s // size].

The key of position p stands in slot p % R of its row's ring, R = pages * size. So its page is entry (p // size) % pages
of the row, and its place there p % size. A row whose first page is negative, or ``pad_slot``, only pads: it reads and
writes nothing, and its output is 0. Entries of other pages that no position of a call needs may hold anything.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors


def named(call: Any, positions: Tensor) -> Tensor:
    """int64 [B,n]: the pages of positions [B,n] as the table has them, within the pool or not."""
    table: Tensor = call.block_table
    entries: Tensor = positions // call.k_cache.shape[1] % table.shape[1]
    return table.gather(1, entries)


def there(call: Any, positions: Tensor) -> Tensor:
    """bool [B,n]: whether positions have a page within the pool. On a CPU all that are needed have, after ``check``."""
    pages, pool = named(call, positions), call.k_cache.shape[0]
    inside: Tensor = (pages >= 0) & (pages < pool)
    return inside


def places(call: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The index of positions [B,n] into a pool [P, size, ...]: any page in place of those that are not ``there``."""
    pool, size = call.k_cache.shape[:2]
    return named(call, positions).clamp(0, pool - 1), positions % size


def needed(table: Tensor, size: int, first: Tensor, last: Tensor) -> Tensor:
    """bool [B,pages]: the entries of a table that positions first .. last [B] need; none where last < first."""
    pages = table.shape[1]
    low, high = first // size, last // size
    entries = torch.arange(pages, device=table.device, dtype=torch.int64)
    return ((entries - low[:, None]) % pages <= (high - low)[:, None]) & (last >= first)[:, None]


def check(call: Any, rows: Tensor, lengths: Tensor) -> None:
    """Raise what is wrong with a call's table: slots beside it, and on a CPU pages out of reach or of two rows.

    rows: the first page of each row, negative for those that pad. lengths: real tokens of each row.
    On a GPU the values are not looked at: that would wait for the device.
    """
    if call.slots is not None:
        raise errors.ArgumentError("block_table and slots are both given: pass block_table alone for rings in pages")
    table, (pool, size) = call.block_table, call.k_cache.shape[:2]
    if pool == 0:
        raise errors.ShapeError("k_cache has 0 pages, expected at least 1")
    if table.device.type != "cpu" or not table.numel() or not size:
        return
    lengths = lengths.masked_fill(rows < 0, 0)
    first, end = (call.positions - call.window + 1).clamp_min(0), call.positions + lengths
    read = needed(table, size, first, torch.where(lengths > 0, end - 1, -1))
    read[:, 0] |= rows >= 0
    wrong = table[read & ((table < 0) | (table >= pool))]
    if wrong.numel():
        raise errors.ArgumentError(f"block_table has {int(wrong[0])}, but k_cache has only pages 0 to {pool - 1}")
    written = needed(table, size, call.positions, end - 1)
    shared = torch.bincount(table[read], minlength=pool)[table.clamp(0, pool - 1)] > 1
    if bool((shared & written).any()):
        page = int(table[shared & written][0])
        raise errors.ArgumentError(f"block_table has page {page} twice, and a token of this call is written to it")


def make(batch: int, pool: int, generator: torch.Generator, pad_slot: int = -1) -> Tensor:
    """int64 [B, pool // B]: different pages in random order; the last row of three or more only pads.

    pad_slot: 0 or more for a page that marks such rows and is no other row's.
    """
    pages = torch.randperm(pool, generator=generator, dtype=torch.int64, device="cpu")
    pages = pages[pages != pad_slot]
    table = pages[: len(pages) // batch * batch].reshape(batch, -1)
    if batch >= 3:
        table[-1] = pad_slot
    return table
