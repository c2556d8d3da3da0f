"""Device code of the forward pass: one tile of packed rows against a range of keys, by online softmax.

Softmax in powers of two: with c = scale log2(e), p = 2^(c q.k - m), where m is the largest exponent seen so far.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops.local_attention._triton_jit import (
    HIDDEN,
    LOG2E,
    cleared,
    load_keys,
    load_rows,
    tanh,
    unsound,
    visible,
)


@triton.jit
def attend(data, tile, view, sight, span, score, SHAPE: tl.constexpr, AGAIN: tl.constexpr, BLOCK_N: tl.constexpr):
    """(sum [block_m, block_d], largest [block_m], total [block_m]), float32, of a tile's rows over a span of keys.

    data: operands of the lane. A row that sees none of these keys has a ``largest`` that any other outweighs, or -inf
    without keys.
    """
    queries = load_rows(data.q, tile, view.T, SHAPE)
    if score.NEGATIVE:
        queries = -queries
    largest = tl.full(tile.rows.shape, float("-inf"), dtype=tl.float32)
    total = tl.zeros(tile.rows.shape, dtype=tl.float32)
    summed = tl.zeros(queries.shape, dtype=tl.float32)
    for start in tl.range(span.low, span.high, BLOCK_N):
        keys = load_keys(data.k, start, span.high, SHAPE.D, BLOCK_N, queries.shape[1])
        scores = dot(queries, tl.trans(keys))
        if score.softcap is not None:
            scores = tanh(scores * score.factor) * (score.softcap * LOG2E)
        if (start < span.full_low) | (start + BLOCK_N > span.full_high):
            scores = tl.where(visible(sight, start, BLOCK_N), scores, HIDDEN)
        if score.softcap is not None:
            top = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - top[:, None])
        else:
            top = tl.maximum(largest, tl.max(scores, axis=1) * score.factor)
            weights = tl.exp2(scores * score.factor - top[:, None])
        rescale = tl.exp2(largest - top)
        total = total * rescale + tl.sum(weights, axis=1)
        largest = top
        values = load_keys(data.v, start, span.high, SHAPE.D, BLOCK_N, queries.shape[1])
        if AGAIN:
            values = cleared(values)
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    return summed, largest, total


@triton.jit
def sees_unsound(v, sight, span, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """bool [block_m, block_d]: whether a row sees a value that is not finite in a channel. v: of the lane."""
    count = tl.zeros((sight.own.shape[0], BLOCK_D), dtype=tl.float32)
    for start in tl.range(span.low, span.high, BLOCK_N):
        values = load_keys(v, start, span.high, D, BLOCK_N, BLOCK_D)
        count = unsound(visible(sight, start, BLOCK_N), values, count)
    return count > 0
