"""A kernel whose bundles are made as on Triton 3.6, whatever is installed. Prints its IR; see test_bundling.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.bundling import CompiledInPlace
from tests.kernel_ir import ir_of
from tuning.static.targets import target

LENGTH = tl.constexpr(32)


class Row(NamedTuple):
    """A pointer, a number of elements that is known when the kernel is compiled, and what may be None."""

    at: object
    length: object
    scale: object


@CompiledInPlace
def row_of(pointer, scale, LENGTH: tl.constexpr, at=7):
    """LENGTH and ``at`` hide the module's constant and the caller's variable."""
    at = pointer + at
    return Row(at, LENGTH, scale)


@CompiledInPlace
def moved(row, elements):
    return None if row is None else Row(row.at + elements, row.length, row.scale)


@CompiledInPlace
def both(row, other):
    return moved(row, 3), moved(other, elements=3)


@triton.jit
def kernel(x, other, y):
    at = tl.arange(0, LENGTH)
    row, nothing = both(row_of(x, None, LENGTH // 2), other)
    tl.static_assert(nothing is None)
    tl.static_assert(row.scale is None)
    tl.static_assert(at.shape[0] == LENGTH)
    # arange takes nothing but what is known when the kernel is compiled
    columns = tl.arange(0, moved(row_of(x, None, LENGTH // 2), 3).length)
    tl.store(y + columns, tl.load(row.at + columns))


if __name__ == "__main__":
    data = torch.empty(64, device="meta")
    print(ir_of(Launch(kernel, (1,), {"x": data, "other": None, "y": data}, {}), target("sm_90")))
