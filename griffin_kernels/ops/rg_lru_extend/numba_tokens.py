"""A few tokens of each sequence in native CPU code: products as for one token, then the recurrence token by token.

    z = x W + b             up to 6 tokens by 4 vectors of columns in registers, down the rows of W
    i, r = sigmoid(z),  a = 2^(rate r),  m = sqrt(1 - a^2)
    h = a h + m i x,        states[keep] = h

The verify step of speculative decoding: weights are read once for all tokens, row by row and in the data's dtype,
2 D n of them (5.2 MB in float32 at D = 2560, n = 256), which bind up to some four tokens; multiply-adds do beyond. The
state stays in the first-level cache between a sequence's tokens and is copied to the pool where it is kept.

Numerics: everything in float32, as in rg_lru's numba.fused; bfloat16 and float16 are widened when read, y rounded once.
"""

from __future__ import annotations

import dataclasses

from griffin_kernels.ops.rg_lru_extend import _lru_extend_numba_call
from griffin_kernels.ops.rg_lru_step.numba_fused import VARIANT as STEP

MANY = 64
"""Tokens from which packing the weights pays."""

VARIANT = dataclasses.replace(
    STEP,
    op="rg_lru_extend",
    name="numba.tokens",
    summary="gate products, gates, states of a few tokens in one pass in native code",
    run=_lru_extend_numba_call.recurrence,
    rank=lambda case, device: 25 if case["B"] * case["T"] < MANY else 15,
)
