"""Allocates large CPU outputs on huge pages.

A fresh 42 MB tensor costs the kernel ten thousand page faults of about 1 us each, which is more than a scan takes to
fill it: with 2 MiB pages a linear scan at B=1, T=4096, D=2560 in float32 takes half the time.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_HUGE_PAGE = 2 * 2**20
_LARGE = 2 * _HUGE_PAGE

if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU, contiguous; large tensors ask Linux for huge pages before they are first touched."""
    tensor = torch.empty(shape, dtype=dtype)
    size = tensor.nbytes
    if size >= _LARGE and sys.platform == "linux":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        # a hint: a kernel that refuses it leaves small pages, and the same tensor
        _madvise(start, end - start, mmap.MADV_HUGEPAGE)
    return tensor
