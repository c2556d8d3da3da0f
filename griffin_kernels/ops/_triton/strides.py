"""Strides of batch, time and head: compile-time constants only where they follow from the model.

Rows that lie next to each other are as far apart as the model is wide: such a stride is a constant, so that offsets of
rows are immediates. Any other stride may follow from the call (time-major data from its batch, head-major data from its
length) and is an argument, or every length would be compiled anew; Triton then compiles for what matters of it, whether
it is a multiple of 16. Parameters of kernels that take either are not annotated.
"""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl

constant = functools.lru_cache(typed=True)(tl.constexpr)
"""A number as a compile-time constant; the same object for the same number: a new one takes 0.2 us of a launch."""

WIDE = tl.constexpr(2**24)
"""Rows so far apart need offsets in 64 bits within a tile, of at most 127 rows."""


def known(stride: int, dense: int) -> Any:
    """A stride as a kernel's parameter: a constant where it is ``dense``, what it is for adjacent rows, or minus it."""
    return constant(stride) if abs(stride) == dense < WIDE.value else stride


def far(stride, _semantic=None):
    """A stride within a kernel: a constant as it is, an argument in 64 bits, so that no multiple of it overflows."""
    if isinstance(stride, tl.tensor):
        return stride.to(tl.int64) if _semantic is None else stride.to(tl.int64, _semantic=_semantic)
    return stride.value if isinstance(stride, tl.constexpr) and _semantic is None else stride


def reach(stride, _semantic=None):
    """A constant stride's magnitude; 0 for one that ``far`` gave in 64 bits, whose multiples need no further care."""
    if isinstance(stride, tl.tensor):
        return tl.constexpr(0)
    return tl.constexpr(abs(stride.value if isinstance(stride, tl.constexpr) else stride))


# nothing passes _semantic in the interpreter; the compiler does so to what is marked
far.__triton_builtin__ = True  # type: ignore[attr-defined]
reach.__triton_builtin__ = True  # type: ignore[attr-defined]
