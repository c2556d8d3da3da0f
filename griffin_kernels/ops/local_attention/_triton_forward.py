"""Device code of the forward pass: one tile of packed rows against a range of keys, by online softmax.

Softmax in powers of two: with c = scale log2(e), p = 2^(c q.k - m), where m is the largest exponent seen so far.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops.local_attention._triton_jit import HIDDEN, LOG2E, cleared, load_keys, sound, tanh


@triton.jit
def attend(
    queries,
    k,
    v,
    own,
    reach,
    low,
    full_low,
    full_high,
    high,
    factor,
    softcap,
    K_STEP,
    K_CHANNEL: tl.constexpr,
    V_STEP,
    V_CHANNEL: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(sum [block_m, block_d], largest [block_m], total [block_m]), float32, over keys low .. high - 1.

    queries: [block_m, block_d]; k, v: at key 0 of their head; own, reach: the keys that each row sees, [block_m].
    Tiles of keys within full_low .. full_high - 1 are seen by every row. factor: c above, or scale / softcap if there
    is one. A row that sees none of these keys has a ``largest`` that any other outweighs, or -inf without keys.
    """
    columns = tl.arange(0, BLOCK_D)
    largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    summed = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    ahead = tl.arange(0, BLOCK_N)
    for start in tl.range(low, high, BLOCK_N):
        begin = tl.cast(start, tl.int64)
        keys = load_keys(k + begin * K_STEP, ahead, high - start, columns, K_STEP, K_CHANNEL, D, BLOCK_N, BLOCK_D)
        scores = dot(queries, tl.trans(keys))
        if CAPPED:
            scores = tanh(scores * factor) * (softcap * LOG2E)
        if (start < full_low) | (start + BLOCK_N > full_high):
            key = start + ahead
            visible = (key[None, :] >= reach[:, None]) & (key[None, :] <= own[:, None])
            scores = tl.where(visible, scores, HIDDEN)
        if CAPPED:
            top = tl.maximum(largest, tl.max(scores, axis=1))
            weights = tl.exp2(scores - top[:, None])
        else:
            top = tl.maximum(largest, tl.max(scores, axis=1) * factor)
            weights = tl.exp2(scores * factor - top[:, None])
        rescale = tl.exp2(largest - top)
        total = total * rescale + tl.sum(weights, axis=1)
        largest = top
        values = load_keys(v + begin * V_STEP, ahead, high - start, columns, V_STEP, V_CHANNEL, D, BLOCK_N, BLOCK_D)
        if AGAIN:
            values = cleared(values)
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    return summed, largest, total


@triton.jit
def unsound_values(
    v,
    own,
    reach,
    low,
    high,
    V_STEP,
    V_CHANNEL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """bool [block_m, block_d]: whether a row sees a value that is not finite in a channel. Arguments of ``attend``."""
    columns = tl.arange(0, BLOCK_D)
    ahead = tl.arange(0, BLOCK_N)
    count = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in tl.range(low, high, BLOCK_N):
        begin = tl.cast(start, tl.int64)
        values = load_keys(v + begin * V_STEP, ahead, high - start, columns, V_STEP, V_CHANNEL, D, BLOCK_N, BLOCK_D)
        key = start + ahead
        visible = (key[None, :] >= reach[:, None]) & (key[None, :] <= own[:, None])
        count = dot(visible.to(values.dtype), tl.where(sound(values), 0.0, 1.0).to(values.dtype), count)
    return count > 0
