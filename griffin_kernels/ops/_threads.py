"""Runs a compiled kernel on several CPU threads.

A kernel is a C function of one pointer that shares its work out among however many threads call it (see
linear_scan/_scan_numba.py). The threads are those of the OpenMP library that torch itself uses: a second pool of
threads, such as numba's, would spin on the cores while torch computes and the other way round. Where torch is built
without OpenMP, or with one that lacks the GNU entry point, a pool of Python threads does the same: ctypes lets go of
the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_GRAIN = 2**17
"""Elements for each thread, at least. Two cores gain nothing below: the data is in the caches of one of them."""

_forked = False


def _after_fork() -> None:
    # a child has none of its parent's threads, and OpenMP waits for them for ever
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _team() -> Callable[[Any, int, int, int], object]:
    """``(kernel, address, threads, 0)``: call the kernel from that many threads, and wait for them."""
    try:
        # looked up through torch's library: this finds the OpenMP that torch is linked to
        start = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return _python_threads
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    return start


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="griffin-kernels")


def _python_threads(kernel: Any, address: int, threads: int, _: int) -> None:
    others = [_pool(threads - 1).submit(kernel, address) for _ in range(threads - 1)]
    kernel(address)
    for other in others:
        other.result()


def threads_for(items: int, elements: int) -> int:
    """How many threads to run ``items`` pieces of ``elements`` in all on, at most torch.get_num_threads()."""
    if _forked or elements < 2 * _GRAIN:
        return 1
    return max(1, min(torch.get_num_threads(), items, elements // _GRAIN))


def run(kernel: Any, address: int, threads: int) -> None:
    """Call ``kernel(address)`` from ``threads`` threads at once, and return when all have."""
    if threads == 1:
        kernel(address)
    else:
        _team()(kernel, address, threads, 0)
