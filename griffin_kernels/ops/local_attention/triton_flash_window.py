"""Flash attention within the window: a tile of queries against the tiles of keys that some of them sees.

A program owns BLOCK_M rows, BLOCK_M / G queries with all G heads of one key head, so keys and values are loaded once
for all of them. It visits keys first(t_0) .. e(t_1), where first is the beginning of the window or of the document:
nothing outside is loaded. Tiles that every row sees whole run without masks. The longest tiles start first.
Online softmax in float32 and powers of two; the weights are rounded to the data's dtype before the second product.

Bytes: q once and out, k and v (1 + W G / BLOCK_M) times, most of that from the L2 cache. Bound by the tensor cores
(4 d operations per pair of a query and a key), or where they wait for one exp2 per pair, by those.
Source: Dao, "FlashAttention-2" (2023), for the recurrence; FlashAttention-3's PackGQA for the packing of heads.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Variant
from griffin_kernels.launch import Launch
from griffin_kernels.ops.local_attention import _flash
from griffin_kernels.ops.local_attention._triton_attention import (
    attend,
    intact,
    report,
    sees_unsound,
    store_lse,
    store_rows,
    work_of,
)
from griffin_kernels.ops.local_attention.op import Call


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_flash(
    q, k, v, first, out, lse, broken, T, S, window, batches, score, SIZES: tl.constexpr, AGAIN: tl.constexpr
):
    """q, out: [B,T,Hq,D]; k, v: [B,S,Hkv,D]; first: see ``Bounds``; lse: [B,Hq,T]; broken: int8 [programs, BLOCK_M].

    Grid: that of ``work_of``.
    """
    if AGAIN:
        if intact(broken, SIZES.BLOCK_M):
            return
    work = work_of(first, T, S, window, batches, SIZES)
    summed, largest, total = attend(q, k, v, work, score, SIZES, AGAIN)
    if not AGAIN:
        report(broken, summed)
    if first is not None:
        if first.blind is not None:
            blind = work.sight.own < work.sight.reach
            summed = tl.where(blind[:, None], 0.0, summed)
            largest = tl.where(blind, float("-inf"), largest)
            total = tl.where(blind, 1.0, total)
    store_rows(out, work.lane, work.tile, summed / total[:, None], T, SIZES)
    if lse is not None:
        store_lse(lse, work.lane, work.tile, largest, total, T, SIZES)
    if AGAIN:
        unsound = sees_unsound(v, work, SIZES)
        store_rows(out, work.lane, work.tile, float("nan"), T, SIZES, unsound)


def launches(call: Call, outputs: dict[str, Any], config: _flash.Tiles) -> list[Launch]:
    """What bounds the keys (see ``_flash.bounds``), then one program per tile of rows, key head and batch entry."""
    q, k, v = call.q, call.k, call.v
    tiles = _flash.forward_tiles(q, config)
    sizes = _flash.sizes_of(call, tiles)
    args, before = _flash.arguments(call)
    out, lse = _flash.forward_outputs(call, outputs)
    return before + _flash.twice(
        kernel=local_attention_flash,
        tiles=tiles,
        sizes=sizes,
        programs=triton.cdiv(q.shape[1] * sizes.G, tiles.block_m) * q.shape[0] * sizes.HKV,
        rows=tiles.block_m,
        args=args | {"out": out, "lse": lse},
        claims=_flash.claims((k, v), tiles),
    )


VARIANT = Variant(
    op="local_attention",
    name="triton.flash_window",
    summary="flash attention within the window, heads of a key head packed into rows",
    config=_flash.Tiles,
    axes={"block_m": (64, 128), "block_n": (128, 64, 32), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=_flash.reject,
    rank=lambda case, device: 30,
    launches=launches,
)
