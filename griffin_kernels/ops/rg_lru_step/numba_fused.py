"""One token in native CPU code: both gate products where the weights lie, the rest while the sums are in the cache.

    z = x W + b             up to 6 batch rows by 4 vectors of columns in registers, down the rows of W
    i, r = sigmoid(z),  a = 2^(rate r),  m = sqrt(1 - a^2)
    h = a h + m i x

A thread takes ``block_d`` output channels of a gate block, for all batch rows. Weights are read once, row by row, in
the data's dtype; 2 D n of them bind a small batch (5.2 MB in float32 at D = 2560, n = 256), multiply-adds a large one.
What follows the products is some 60 vector instructions, two divisions and a square root for a vector of channels.

Numerics: everything in float32, as in rg_lru's numba.fused; bfloat16 and float16 are widened when read, y rounded once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.rg_lru_step import _lru_step_numba_call


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item; few where there are many cores."""

    block_d: int = 256


VARIANT = Variant(
    op="rg_lru_step",
    name="numba.fused",
    summary="gate products, gates and state in one pass in native code",
    run=_lru_step_numba_call.recurrence,
    config=Config,
    axes={"block_d": (32, 64, 128, 256)},
    reject=functools.partial(unfit_cpu, float64=False),
    rank=lambda case, device: 20,  # above every eager variant
)
