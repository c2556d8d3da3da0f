"""The kernels of the backward pass. Lanes are pairs of a batch entry and a key head, the fastest place in a grid."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops.local_attention._triton_jit import (
    LOG2E,
    View,
    intact,
    lane_of,
    load_rows,
    part_of,
    report,
    store_rows,
    tile_of,
    work_of,
)
from griffin_kernels.ops.local_attention_bwd._triton_jit import (
    load_lse,
    numbers_of,
    seen_by_unsound,
    span_of_keys,
    through_keys,
    through_queries,
)


class KeyGradients(NamedTuple):
    """dk, dv [PARTS,B,S,Hkv,D]."""

    dk: Any
    dv: Any


@triton.jit(do_not_specialize=["T", "batches"])
def local_attention_bwd_delta(dout, out, lse, numbers, T, batches, SIZES: tl.constexpr):
    """numbers from dout, out: [B,T,Hq,D] and lse: [B,Hq,T]. Grid: tiles of [T * G] * B * Hkv."""
    lanes = batches * SIZES.HKV
    lane = lane_of(tl.program_id(0) % lanes, SIZES)
    tile = tile_of(tl.program_id(0) // lanes * SIZES.BLOCK_M, SIZES)
    upstream = load_rows(dout, lane, tile, T, SIZES)
    result = load_rows(out, lane, tile, T, SIZES)
    value = load_lse(lse, lane, tile, T, SIZES)
    there = tile.rows < T * SIZES.G
    own = numbers_of(numbers, lane, T, SIZES)
    tl.store(own.delta + tile.rows, tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1), mask=there)
    tl.store(own.powers + tile.rows, value * LOG2E, mask=there)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_queries(
    q, k, v, dout, first, numbers, dq, broken, T, S, window, batches, score, SIZES: tl.constexpr, AGAIN: tl.constexpr
):
    """dq [B,T,Hq,D]; q, k, v, first, broken as in the forward pass. Grid: that of ``work_of`` with one part."""
    if AGAIN:
        if intact(broken, SIZES.BLOCK_M):
            return
    work = work_of(first, T, S, window, batches, SIZES, 1)
    own = numbers_of(numbers, work.lane, T, SIZES)
    summed = through_queries(q, k, v, dout, own, work, score, SIZES, AGAIN)
    if not AGAIN:
        report(broken, summed)
    store_rows(dq, work.lane, work.tile, summed * score.scale, T, SIZES)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_keys(
    q,
    k,
    v,
    dout,
    first,
    numbers,
    grads,
    broken,
    T,
    S,
    window,
    batches,
    score,
    SIZES: tl.constexpr,
    AGAIN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """grads: every part has the sum over its share of the rows that see a tile of keys; broken: [programs, BLOCK_N].

    Grid: tiles of [S] * PARTS * B * Hkv.
    """
    if AGAIN:
        if intact(broken, SIZES.BLOCK_N):
            return
    lanes = batches * SIZES.HKV
    part = tl.program_id(0) // lanes % PARTS
    start = tl.program_id(0) // (lanes * PARTS) * SIZES.BLOCK_N
    lane = lane_of(tl.program_id(0) % lanes, SIZES)
    view = View(T, S, window)
    span = part_of(span_of_keys(first, lane, view, start, SIZES), part, PARTS, SIZES.BLOCK_M)
    own = numbers_of(numbers, lane, T, SIZES)
    dk, dv = through_keys(q, k, v, dout, first, own, lane, start, view, span, score, SIZES, AGAIN)
    if not AGAIN:
        report(broken, dk + dv)
    ahead, columns = tl.arange(0, SIZES.BLOCK_N), tl.arange(0, SIZES.BLOCK_D)
    inside = (start + ahead < S)[:, None]
    if SIZES.D != SIZES.BLOCK_D:
        inside = inside & (columns[None, :] < SIZES.D)
    row = (part * tl.cast(batches, tl.int64) + lane.batch) * S + start
    base = (row * SIZES.HKV + lane.shared) * SIZES.D
    places = base + ahead[:, None] * (SIZES.HKV * SIZES.D) + columns[None, :]
    tl.store(grads.dk + places, dk * score.scale, mask=inside)
    tl.store(grads.dv + places, dv, mask=inside)
    if AGAIN:
        unsound = seen_by_unsound(dout, first, lane, start, view, span, SIZES)
        tl.store(grads.dv + places, float("nan"), mask=inside & unsound)


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
