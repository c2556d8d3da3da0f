"""Device code of the forward pass: one tile of packed rows against a range of keys, by online softmax.

Softmax in powers of two: with c = scale log2(e), p = 2^(c q.k - m), where m is the largest exponent seen so far.
"""

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops.local_attention._triton_attention import (
    HIDDEN,
    LOG2E,
    cleared,
    load_keys,
    load_rows,
    tanh,
    unsound,
    visible,
    zeros,
)


@triton.jit
def attend(q, k, v, work, score, SIZES: tl.constexpr, AGAIN: tl.constexpr):
    """(sum [block_m, block_d], largest [block_m], total [block_m]), float32, of a program's rows and keys.

    A row that sees none of these keys has a ``largest`` that any other outweighs, or -inf without keys.
    """
    queries = load_rows(q, work.lane, work.tile, work.view.T, SIZES)
    if score.NEGATIVE:
        queries = -queries
    largest = tl.full(work.tile.rows.shape, float("-inf"), dtype=tl.float32)
    total = tl.zeros(work.tile.rows.shape, dtype=tl.float32)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for start in tl.range(work.span.low, work.span.high, SIZES.BLOCK_N):
        keys = load_keys(k, work.lane, start, work.span.high, SIZES)
        scores = dot(queries, tl.trans(keys))
        if score.softcap is not None:
            scores = tanh(scores * score.factor) * (score.softcap * LOG2E)
        if (start < work.span.full_low) | (start + SIZES.BLOCK_N > work.span.full_high):
            scores = tl.where(visible(work.sight, start, SIZES.BLOCK_N), scores, HIDDEN)
        if score.softcap is not None:
            top = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - top[:, None])
        else:
            top = tl.maximum(largest, tl.max(scores, axis=1) * score.factor)
            weights = tl.exp2(scores * score.factor - top[:, None])
        rescale = tl.exp2(largest - top)
        total = total * rescale + tl.sum(weights, axis=1)
        largest = top
        values = load_keys(v, work.lane, start, work.span.high, SIZES)
        if AGAIN:
            values = cleared(values)
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    return summed, largest, total


@triton.jit
def sees_unsound(v, work, SIZES: tl.constexpr):
    """bool [block_m, block_d]: whether a row sees a value that is not finite in a channel."""
    count = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for start in tl.range(work.span.low, work.span.high, SIZES.BLOCK_N):
        values = load_keys(v, work.lane, start, work.span.high, SIZES)
        count = unsound(visible(work.sight, start, SIZES.BLOCK_N), values, count)
    return count > 0
