"""Large CPU outputs from a pool of huge-page blocks that were touched before.

A fresh 42 MB tensor costs Linux ten thousand page faults of about 1 us each, which is more than a scan takes to fill
it; torch gives such memory back to the system as soon as a tensor dies, and so pays again at every call. Here a block
goes back to a pool when its last tensor dies, as torch's allocator does on a GPU; large ones ask for 2 MiB pages.
At most ``MOST_IDLE_BYTES`` are kept; ``release`` gives them back.
Such a tensor cannot grow: ``resize_`` to more elements raises RuntimeError ("storage that is not resizable"), as for
what comes from NumPy, since torch has no allocator for the memory. Its ``clone()`` can.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

MOST_IDLE_BYTES = 2**30
"""Bytes of idle blocks that the pool keeps; the ones that were idle longest go first."""

_HUGE_PAGE = 2 * 2**20
_HUGE = 2 * _HUGE_PAGE
"""Bytes from which a tensor is put on huge pages."""
_POOLED = 2**19
"""Bytes from which a tensor comes from the pool: malloc keeps smaller ones itself."""


class _Pool:
    """Idle blocks, longest idle first. A block is an anonymous private mapping."""

    def __init__(self) -> None:
        self.idle: list[mmap.mmap] = []
        self.lock = threading.RLock()  # a block can come back, by garbage collection, inside any line here

    def take(self, size: int) -> mmap.mmap:
        """A block with ``size`` bytes behind a huge-page boundary, or behind any boundary if it is not that large."""
        huge = size >= _HUGE
        wanted = size + _HUGE_PAGE if huge else size
        with self.lock:
            fitting = [block for block in self.idle if wanted <= len(block) <= 1.25 * wanted]  # hardly larger
            if fitting:
                block = min(fitting, key=len)
                self.idle.remove(block)
                return block
        block = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge:
            # a hint: a kernel built without huge pages refuses it, and small ones hold the same numbers
            with contextlib.suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def give(self, block: mmap.mmap) -> None:
        with self.lock:
            self.idle.append(block)
            while sum(map(len, self.idle)) > MOST_IDLE_BYTES:
                self.idle.pop(0)


_POOL = _Pool()


def release() -> None:
    """Give the memory of all idle blocks back to the system."""
    with _POOL.lock:
        _POOL.idle.clear()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU, contiguous; large tensors come from the pool on Linux."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory and torch.are_deterministic_algorithms_enabled()
    if size < _POOLED or sys.platform != "linux" or filled:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _POOL.take(size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    # the tensor holds the view, the view's end brings the block back
    view = (ctypes.c_char * size).from_buffer(block, -start % _HUGE_PAGE if size >= _HUGE else 0)
    weakref.finalize(view, _POOL.give, block).atexit = False
    flat = torch.frombuffer(view, dtype=dtype, count=count)
    # not flat.view(shape): autograd forbids to change a view in place that comes out of a Function with several outputs
    return flat.resize_(shape)
