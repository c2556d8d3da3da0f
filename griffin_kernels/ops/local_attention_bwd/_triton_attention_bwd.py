"""The kernels of the backward pass: delta, the gradient of a tile of queries, that of a tile of keys and values.

Scores are recomputed in powers of two as in the forward pass: p = 2^(c q.k - lse log2(e)), c = scale log2(e).
Per-row numbers lie as [B, Hkv, T * G], in the order of packed rows, see local_attention/_triton_attention.py.
Lanes are pairs of a batch entry and a key head, the fastest place in a grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention._triton_attention import (
    LOG2E,
    Span,
    View,
    cleared,
    in_channels,
    intact,
    lane_of,
    load_keys_before,
    load_rows,
    of_head,
    part_of,
    report,
    store_rows,
    tanh,
    tile_of,
    unsound,
    visible,
    work_of,
    zeros,
)
from griffin_kernels.ops.local_attention._triton_bounds import load_first, load_last


class Numbers(NamedTuple):
    """float32 [B,Hkv,T*G], in a kernel from a lane on. Of packed rows: dout . out - dlse, and lse log2(e)."""

    delta: Any
    powers: Any


class KeyGradients(NamedTuple):
    """dk, dv [PARTS,B,S,Hkv,D]."""

    dk: Any
    dv: Any


@bundling
def numbers_of(numbers, lane, T, SIZES: tl.constexpr):
    """The numbers from a lane on."""
    rows = (lane.batch * SIZES.HKV + lane.shared) * T * SIZES.G
    return Numbers(numbers.delta + rows, numbers.powers + rows)


@triton.jit
def weights_of(scores, powers, score):
    """(weights, slope) of raw scores q.k: p above, and the derivative of the softcap, 1 where there is none.

    powers: lse log2(e), in a shape that broadcasts.
    """
    if score.softcap is not None:
        bent = tanh(scores * score.factor)
        weights = tl.exp2(bent * (score.softcap * LOG2E) - powers)
        slope = 1.0 - bent * bent
    else:
        weights = tl.exp2(scores * score.factor - powers)
        slope = 1.0
    return weights, slope


@bundling
def span_of_keys(first, lane, view, start, SIZES: tl.constexpr):
    """The span of packed rows that may see some key of the tile from ``start`` on, the full ones all of it."""
    CHUNK: tl.constexpr = 256
    earlier = view.S - view.T
    last = tl.minimum(start + SIZES.BLOCK_N, view.S) - 1
    low = tl.maximum(start - earlier, 0)
    high = tl.minimum(last + view.window - earlier, view.T)
    full_low = tl.maximum(start + SIZES.BLOCK_N - 1 - earlier, 0)
    full_high = tl.minimum(start + view.window - earlier, view.T)
    if first is not None:  # in any order
        seeing = tl.cast(0, tl.int32)
        if first.last is not None:
            low = tl.maximum(start - first.right - earlier, 0)
            full_low = low
        if first.blind is not None:  # any of them, as far as is known
            low = tl.cast(0, tl.int32)
            full_low = low
            high = view.T
            full_high = view.T
            lowest = view.T
        for begin in range(low, high, CHUNK):
            query = begin + tl.arange(0, CHUNK)
            reach = load_first(first, lane, query, query < high, 2147483647)
            seeing = tl.maximum(seeing, tl.max(tl.where(reach <= last, query + 1, 0), axis=0))
            full_high = tl.minimum(full_high, tl.min(tl.where(reach > start, query, 2147483647), axis=0))
            if first.last is not None:
                end = load_last(first, lane, query, query < high, 2147483647)
                partial = end < start + SIZES.BLOCK_N - 1
                full_low = tl.maximum(full_low, tl.max(tl.where(partial, query + 1, 0), axis=0))
                if first.blind is not None:
                    lowest = tl.minimum(lowest, tl.min(tl.where(end >= start, query, 2147483647), axis=0))
        high = tl.minimum(high, seeing)
        if first.blind is not None:
            low = tl.minimum(lowest, high)
    return Span(low * SIZES.G, full_low * SIZES.G, full_high * SIZES.G, high * SIZES.G)


@triton.jit
def seen(key, rows, first, lane, view, high, SIZES: tl.constexpr):
    """bool [block_n, block_m]: which packed rows below ``high`` see which keys."""
    query = tl.minimum(rows // SIZES.G, view.T - 1)
    own = query + (view.S - view.T)
    if first is not None:
        if first.last is not None:
            own = load_last(first, lane, query)
    visible = (key[:, None] <= own[None, :]) & (rows < high)[None, :]
    if first is None:
        visible = visible & (key[:, None] > (own - view.window)[None, :])
    else:
        visible = visible & (key[:, None] >= load_first(first, lane, query)[None, :])
    return visible


@triton.jit(do_not_specialize=["T", "batches"])
def local_attention_bwd_delta(dout, out, lse, dlse, numbers, T, batches, SIZES: tl.constexpr):
    """numbers from dout, out: [B,T,Hq,D] and lse, dlse: [B,Hq,T]. Grid: tiles of [T * G] * B * Hkv."""
    lanes = batches * SIZES.HKV
    lane = lane_of(tl.program_id(0) % lanes, SIZES)
    tile = tile_of(tl.program_id(0) // lanes * SIZES.BLOCK_M, SIZES)
    upstream = load_rows(dout, lane, tile, T, SIZES)
    result = load_rows(out, lane, tile, T, SIZES)
    there = tile.rows < T * SIZES.G
    where = (tile.rows % SIZES.G) * far(lse.head) + (tile.rows // SIZES.G).to(tl.int64) * far(lse.step)
    value = tl.load(of_head(lse, lane.batch, lane.shared * SIZES.G) + where, mask=there)
    own = numbers_of(numbers, lane, T, SIZES)
    delta = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1)
    if dlse is not None:
        where = (tile.rows % SIZES.G) * far(dlse.head) + (tile.rows // SIZES.G).to(tl.int64) * far(dlse.step)
        delta -= tl.load(of_head(dlse, lane.batch, lane.shared * SIZES.G) + where, mask=there, other=0.0)
    tl.store(own.delta + tile.rows, delta, mask=there)
    tl.store(own.powers + tile.rows, value * LOG2E, mask=there)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_queries(
    q, k, v, dout, first, numbers, dq, broken, T, S, window, batches, score, SIZES: tl.constexpr, AGAIN: tl.constexpr
):
    """dq [B,T,Hq,D]; q, k, v, first, broken as in the forward pass. Grid: that of ``work_of``."""
    if AGAIN:
        if intact(broken, SIZES.BLOCK_M):
            return
    work = work_of(first, T, S, window, batches, SIZES)
    lane, tile, span = work.lane, work.tile, work.span
    own = numbers_of(numbers, lane, T, SIZES)
    upstream = load_rows(dout, lane, tile, T, SIZES)
    queries = load_rows(q, lane, tile, T, SIZES)
    if score.NEGATIVE:
        queries = -queries
    there = tile.rows < T * SIZES.G
    powers = tl.load(own.powers + tile.rows, mask=there, other=0.0)
    delta = tl.load(own.delta + tile.rows, mask=there, other=0.0)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for start in tl.range(span.low, span.high, SIZES.BLOCK_N):
        keys = load_keys_before(k, lane, start, span.high, SIZES)
        values = load_keys_before(v, lane, start, span.high, SIZES)
        weights, slope = weights_of(dot(queries, tl.trans(keys)), powers[:, None], score)
        if (start < span.full_low) | (start + SIZES.BLOCK_N > span.full_high):
            weights = tl.where(visible(work.sight, start, SIZES.BLOCK_N), weights, 0.0)
        change = weights * slope * (dot(upstream, tl.trans(values)) - delta[:, None])
        if AGAIN:
            change = tl.where(visible(work.sight, start, SIZES.BLOCK_N), change, 0.0)
            keys = cleared(keys)  # what is not finite in a visible key is so in its weight
        summed = dot(change.to(keys.dtype), keys, summed)
    if not AGAIN:
        report(broken, summed)
    store_rows(dq, lane, tile, summed * score.scale, T, SIZES)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_keys(
    q, k, v, dout, first, numbers, grads, broken, T, S, window, batches, score, SIZES: tl.constexpr, AGAIN: tl.constexpr
):
    """grads: every part has the sum over its share of the rows that see a tile of keys; broken: [programs, BLOCK_N].

    Grid: tiles of [S] * PARTS * B * Hkv.
    """
    if AGAIN:
        if intact(broken, SIZES.BLOCK_N):
            return
    lanes = batches * SIZES.HKV
    part = tl.program_id(0) // lanes % SIZES.PARTS
    start = tl.program_id(0) // (lanes * SIZES.PARTS) * SIZES.BLOCK_N
    lane = lane_of(tl.program_id(0) % lanes, SIZES)
    view = View(T, S, window)
    span = part_of(span_of_keys(first, lane, view, start, SIZES), part, SIZES.BLOCK_M, SIZES)
    own = numbers_of(numbers, lane, T, SIZES)
    ahead, columns = tl.arange(0, SIZES.BLOCK_N), tl.arange(0, SIZES.BLOCK_D)
    key = start + ahead
    keys = load_keys_before(k, lane, start, view.S, SIZES)
    values = load_keys_before(v, lane, start, view.S, SIZES)
    if score.NEGATIVE:
        keys = -keys
    dk = zeros(SIZES.BLOCK_N, SIZES.BLOCK_D)
    dv = zeros(SIZES.BLOCK_N, SIZES.BLOCK_D)
    for row in tl.range(span.low, span.high, SIZES.BLOCK_M):
        tile = tile_of(row, SIZES)
        queries = load_rows(q, lane, tile, view.T, SIZES)
        upstream = load_rows(dout, lane, tile, view.T, SIZES)
        power = tl.load(own.powers + tile.rows, mask=tile.rows < span.high, other=0.0)
        less = tl.load(own.delta + tile.rows, mask=tile.rows < span.high, other=0.0)
        weights, slope = weights_of(dot(keys, tl.trans(queries)), power[None, :], score)
        if (row < span.full_low) | (row + SIZES.BLOCK_M > span.full_high):
            weights = tl.where(seen(key, tile.rows, first, lane, view, span.high, SIZES), weights, 0.0)
        usable = upstream
        if AGAIN:
            usable = cleared(upstream)
        dv = dot(weights.to(usable.dtype), usable, dv)
        change = weights * slope * (dot(values, tl.trans(upstream)) - less[None, :])
        if AGAIN:
            change = tl.where(seen(key, tile.rows, first, lane, view, span.high, SIZES), change, 0.0)
            queries = cleared(queries)  # what is not finite in a visible query is so in its weights
        dk = dot(change.to(queries.dtype), queries, dk)
    if not AGAIN:
        report(broken, dk + dv)
    inside = in_channels((key < S)[:, None], columns, SIZES)
    base = (part * tl.cast(batches, tl.int64) + lane.batch) * S + start
    base = (base * SIZES.HKV + lane.shared) * SIZES.D
    places = base + ahead[:, None] * (SIZES.HKV * SIZES.D) + columns[None, :]
    tl.store(grads.dk + places, dk * score.scale, mask=inside)
    tl.store(grads.dv + places, dv, mask=inside)
    if AGAIN:
        # keys seen by a row whose dout is not finite in a channel
        count = zeros(SIZES.BLOCK_N, SIZES.BLOCK_D)
        for row in tl.range(span.low, span.high, SIZES.BLOCK_M):
            tile = tile_of(row, SIZES)
            upstream = load_rows(dout, lane, tile, T, SIZES)
            count = unsound(seen(key, tile.rows, first, lane, view, span.high, SIZES), upstream, count)
        tl.store(grads.dv + places, float("nan"), mask=inside & (count > 0))


@triton.jit
def local_attention_bwd_join(parts, grads, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """dk, dv [count]: sums of parts [PARTS, count], in that order. Grid: ceil(count / block)."""
    offset = tl.cast(tl.program_id(0), tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    inside = offset + places < count
    dk = tl.zeros((BLOCK,), dtype=tl.float32)
    dv = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        base = offset + part * tl.cast(count, tl.int64)
        dk += tl.load(parts.dk + base + places, mask=inside, other=0.0)
        dv += tl.load(parts.dv + base + places, mask=inside, other=0.0)
    tl.store(grads.dk + offset + places, dk, mask=inside)
    tl.store(grads.dv + offset + places, dv, mask=inside)
