"""Device code of the backward kernels: delta, the gradient of a tile of queries, that of a tile of keys and values.

Scores are recomputed in powers of two as in the forward pass: p = 2^(c q.k - lse log2(e)), c = scale log2(e).
Per-row numbers lie as [B, Hkv, T * G], in the order of packed rows, see local_attention/_triton_jit.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops.local_attention._triton_jit import LOG2E, cleared, load_keys, load_rows, sound, tanh


@triton.jit
def weights_of(scores, powers, factor, softcap, CAPPED: tl.constexpr):
    """(weights, slope) of raw scores q.k: p above, and the derivative of the softcap, 1 where there is none.

    powers: lse log2(e), in a shape that broadcasts. factor: c above, or scale / softcap.
    """
    if CAPPED:
        bent = tanh(scores * factor)
        weights = tl.exp2(bent * (softcap * LOG2E) - powers)
        slope = 1.0 - bent * bent
    else:
        weights = tl.exp2(scores * factor - powers)
        slope = 1.0
    return weights, slope


@triton.jit
def through_queries(
    queries,
    upstream,
    powers,
    delta,
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
    """sum over keys low .. high - 1 of ds_k k_k, float32 [block_m, block_d].

    queries, upstream (dout): [block_m, block_d]; powers, delta: [block_m]; the rest as in the forward ``attend``.
    """
    columns = tl.arange(0, BLOCK_D)
    ahead = tl.arange(0, BLOCK_N)
    summed = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in tl.range(low, high, BLOCK_N):
        begin = tl.cast(start, tl.int64)
        keys = load_keys(k + begin * K_STEP, ahead, high - start, columns, K_STEP, K_CHANNEL, D, BLOCK_N, BLOCK_D)
        values = load_keys(v + begin * V_STEP, ahead, high - start, columns, V_STEP, V_CHANNEL, D, BLOCK_N, BLOCK_D)
        weights, slope = weights_of(dot(queries, tl.trans(keys)), powers[:, None], factor, softcap, CAPPED)
        if (start < full_low) | (start + BLOCK_N > full_high):
            key = start + ahead
            visible = (key[None, :] >= reach[:, None]) & (key[None, :] <= own[:, None])
            weights = tl.where(visible, weights, 0.0)
        change = weights * slope * (dot(upstream, tl.trans(values)) - delta[:, None])
        if AGAIN:
            key = start + ahead
            visible = (key[None, :] >= reach[:, None]) & (key[None, :] <= own[:, None])
            change = tl.where(visible, change, 0.0)
            keys = cleared(keys)  # what is not finite in a visible key is so in its weight
        summed = dot(change.to(keys.dtype), keys, summed)
    return summed


@triton.jit
def queries_of_keys(first, start, T, S, window, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr):
    """(low, full_low, full_high, high): queries low .. high - 1 may see some key of the tile from ``start`` on, and
    queries full_low .. full_high - 1 see all of it.

    first: [T] of ``first_keys`` for this batch entry, in any order, or None where there are no documents.
    """
    earlier = S - T
    last = tl.minimum(start + BLOCK_N, S) - 1
    low = tl.maximum(start - earlier, 0)
    high = tl.minimum(last + window - earlier, T)
    full_low = tl.maximum(start + BLOCK_N - 1 - earlier, 0)
    full_high = tl.minimum(start + window - earlier, T)
    if first is not None:
        seeing = tl.cast(0, tl.int32)
        for begin in range(low, high, CHUNK):
            query = begin + tl.arange(0, CHUNK)
            reach = tl.load(first + query, mask=query < high, other=2147483647)
            seeing = tl.maximum(seeing, tl.max(tl.where(reach <= last, query + 1, 0), axis=0))
            full_high = tl.minimum(full_high, tl.min(tl.where(reach > start, query, 2147483647), axis=0))
        high = tl.minimum(high, seeing)
    return low, full_low, full_high, high


@triton.jit
def through_keys(
    keys,
    values,
    key,
    q,
    dout,
    powers,
    delta,
    first,
    low,
    full_low,
    full_high,
    high,
    T,
    S,
    window,
    factor,
    softcap,
    G: tl.constexpr,
    Q_STEP,
    Q_HEAD,
    Q_CHANNEL: tl.constexpr,
    DOUT_STEP,
    DOUT_HEAD,
    DOUT_CHANNEL: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(sum of ds_t q_t, sum of p_t dout_t), float32 [block_n, block_d], over packed rows low .. high - 1.

    keys, values: [block_n, block_d], of key indices ``key`` [block_n]. q, dout: at query 0, head 0 of the key head;
    powers, delta: [T * G]. Rows full_low .. full_high - 1 see every key of the tile.
    """
    columns = tl.arange(0, BLOCK_D)
    to_keys = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    to_values = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in tl.range(low, high, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        origin = start // G
        begin = tl.cast(origin, tl.int64)
        queries = load_rows(
            q + begin * Q_STEP, rows, origin, columns, T, G, Q_STEP, Q_HEAD, Q_CHANNEL, D, BLOCK_M, BLOCK_D
        )
        upstream = load_rows(
            dout + begin * DOUT_STEP,
            rows,
            origin,
            columns,
            T,
            G,
            DOUT_STEP,
            DOUT_HEAD,
            DOUT_CHANNEL,
            D,
            BLOCK_M,
            BLOCK_D,
        )
        power = tl.load(powers + rows, mask=rows < high, other=0.0)
        less = tl.load(delta + rows, mask=rows < high, other=0.0)
        weights, slope = weights_of(dot(keys, tl.trans(queries)), power[None, :], factor, softcap, CAPPED)
        if (start < full_low) | (start + BLOCK_M > full_high):
            weights = tl.where(seen(key, rows, first, high, T, S, window, G), weights, 0.0)
        usable = upstream
        if AGAIN:
            usable = cleared(upstream)
        to_values = dot(weights.to(usable.dtype), usable, to_values)
        change = weights * slope * (dot(values, tl.trans(upstream)) - less[None, :])
        if AGAIN:
            change = tl.where(seen(key, rows, first, high, T, S, window, G), change, 0.0)
            queries = cleared(queries)  # what is not finite in a visible query is so in its weights
        to_keys = dot(change.to(queries.dtype), queries, to_keys)
    return to_keys, to_values


@triton.jit
def seen(key, rows, first, high, T, S, window, G: tl.constexpr):
    """bool [block_n, block_m]: which packed rows below ``high`` see which keys; see ``through_keys``."""
    query = tl.minimum(rows // G, T - 1)
    own = query + (S - T)
    visible = (key[:, None] <= own[None, :]) & (rows < high)[None, :]
    if first is None:
        visible = visible & (key[:, None] > (own - window)[None, :])
    else:
        visible = visible & (key[:, None] >= tl.load(first + query)[None, :])
    return visible


@triton.jit
def unsound_upstream(
    key,
    dout,
    first,
    low,
    high,
    T,
    S,
    window,
    G: tl.constexpr,
    DOUT_STEP,
    DOUT_HEAD,
    DOUT_CHANNEL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """bool [block_n, block_d]: whether a key is seen by a row whose dout is not finite in a channel."""
    columns = tl.arange(0, BLOCK_D)
    count = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in tl.range(low, high, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        origin = start // G
        where = dout + tl.cast(origin, tl.int64) * DOUT_STEP
        upstream = load_rows(
            where, rows, origin, columns, T, G, DOUT_STEP, DOUT_HEAD, DOUT_CHANNEL, D, BLOCK_M, BLOCK_D
        )
        visible = seen(key, rows, first, high, T, S, window, G)
        count = dot(visible.to(upstream.dtype), tl.where(sound(upstream), 0.0, 1.0).to(upstream.dtype), count)
    return count > 0
