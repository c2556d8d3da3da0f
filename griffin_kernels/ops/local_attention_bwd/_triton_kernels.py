"""The kernels of the backward pass. Lanes are pairs of a batch entry and a key head, the fastest place in a grid."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels.ops.local_attention._triton_jit import (
    LOG2E,
    intact,
    lane_of,
    load_rows,
    of_head,
    of_lane,
    part_of,
    report,
    sight_of,
    span_of,
    store_rows,
    tile_of,
    view_of,
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
def local_attention_bwd_delta(
    dout, out, lse, numbers, T, batches, SHAPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """numbers from dout, out: [B,T,Hq,D] and lse: [B,Hq,T]. Grid: tiles of [T * G] * B * Hkv."""
    lanes = batches * SHAPE.HKV
    lane = lane_of(tl.program_id(0) % lanes, SHAPE.HKV)
    tile = tile_of(tl.program_id(0) // lanes * BLOCK_M, SHAPE.G, BLOCK_M, BLOCK_D)
    head = lane.shared * SHAPE.G
    upstream = load_rows(of_head(dout, lane.batch, head), tile, T, SHAPE)
    result = load_rows(of_head(out, lane.batch, head), tile, T, SHAPE)
    there = tile.rows < T * SHAPE.G
    value = load_lse(of_head(lse, lane.batch, head), tile, T, SHAPE.G)
    own = numbers_of(numbers, lane, T, SHAPE)
    tl.store(own.delta + tile.rows, tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1), mask=there)
    tl.store(own.powers + tile.rows, value * LOG2E, mask=there)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_queries(
    data,
    numbers,
    dq,
    broken,
    T,
    S,
    window,
    batches,
    score,
    SHAPE: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dq [B,T,Hq,D]. Grid: tiles of [T * G] * B * Hkv, the last tiles first, as they see most keys."""
    if AGAIN:
        if intact(broken, BLOCK_M):
            return
    lanes = batches * SHAPE.HKV
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // lanes * BLOCK_M
    lane = lane_of(tl.program_id(0) % lanes, SHAPE.HKV)
    tile = tile_of(row, SHAPE.G, BLOCK_M, BLOCK_D)
    view = view_of(data.first, lane, T, S, window)
    sight = sight_of(view, tile, SHAPE.G)
    span = span_of(view, sight, row, SHAPE.G)
    own = numbers_of(numbers, lane, T, SHAPE)
    summed = through_queries(of_lane(data, lane, SHAPE.G), own, tile, view, sight, span, score, SHAPE, AGAIN, BLOCK_N)
    if not AGAIN:
        report(broken, summed)
    store_rows(dq, lane, tile, summed * score.scale, T, SHAPE)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_keys(
    data,
    numbers,
    grads,
    broken,
    T,
    S,
    window,
    batches,
    score,
    SHAPE: tl.constexpr,
    AGAIN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grads: every part has the sum over its share of the rows that see a tile of keys.

    Grid: tiles of [S] * PARTS * B * Hkv.
    """
    if AGAIN:
        if intact(broken, BLOCK_N):
            return
    lanes = batches * SHAPE.HKV
    part = tl.program_id(0) // lanes % PARTS
    start = tl.program_id(0) // (lanes * PARTS) * BLOCK_N
    lane = lane_of(tl.program_id(0) % lanes, SHAPE.HKV)
    view = view_of(data.first, lane, T, S, window)
    span = span_of_keys(view, start, SHAPE.G, BLOCK_N)
    if PARTS > 1:
        span = part_of(span, part, PARTS, BLOCK_M)
    own = numbers_of(numbers, lane, T, SHAPE)
    dk, dv = through_keys(
        of_lane(data, lane, SHAPE.G), own, start, view, span, score, SHAPE, AGAIN, BLOCK_M, BLOCK_N, BLOCK_D
    )
    if not AGAIN:
        report(broken, dk + dv)
    ahead, columns = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = (start + ahead < S)[:, None]
    if SHAPE.D != BLOCK_D:
        inside = inside & (columns[None, :] < SHAPE.D)
    row = (part * tl.cast(batches, tl.int64) + lane.batch) * S + start
    base = (row * SHAPE.HKV + lane.shared) * SHAPE.D
    places = base + ahead[:, None] * (SHAPE.HKV * SHAPE.D) + columns[None, :]
    tl.store(grads.dk + places, dk * score.scale, mask=inside)
    tl.store(grads.dv + places, dv, mask=inside)
    if AGAIN:
        unsound = seen_by_unsound(
            of_lane(data, lane, SHAPE.G).dout, start, view, span, SHAPE, BLOCK_M, BLOCK_N, BLOCK_D
        )
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
