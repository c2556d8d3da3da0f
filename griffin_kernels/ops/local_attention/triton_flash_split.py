"""Flash attention within the window with the keys of a tile split over programs, for few queries or one sequence.

Part j of the keys leaves its largest exponent m_j, its sum of weights t_j and its weighted values o_j; with m = max m_j

    out = sum_j 2^(m_j - m) o_j / sum_j 2^(m_j - m) t_j

The tiles of triton.flash_window fill a device only where T G B Hkv / BLOCK_M is a few times its number of processors:
not for a prompt of 2048 tokens with one key head, whose longest tiles are also twice the mean, nor for a short piece
of a prompt with keys kept from before. Parts make more programs of even length, for 8 bytes per element of out and
part, written and read again.

Bytes: those of triton.flash_window and 8 ``parts`` per element of out. Bound by the tensor cores.
Source: the split over keys of Flash-Decoding (Dao et al., 2023), applied to tiles of queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.bundling import bundling
from griffin_kernels.ops.local_attention import _flash
from griffin_kernels.ops.local_attention._key_ranges import may_be_blind
from griffin_kernels.ops.local_attention._triton_attention import (
    Parts,
    attend,
    inside_of,
    intact,
    lane_of,
    report,
    sees_unsound,
    store_lse,
    store_rows,
    tile_of,
    work_of,
    zeros,
)
from griffin_kernels.ops.local_attention._triton_bounds import are_blind
from griffin_kernels.ops.local_attention.cost import cost
from griffin_kernels.ops.local_attention.op import Call

JOINED = 16
"""Rows per program of the kernel that joins parts."""


@dataclass(frozen=True)
class Config(_flash.Tiles, _flash.Parted):
    """parts: programs that share the keys of a tile. The rest as in ``_flash.Tiles``."""


@bundling
def of_part(parts, place, tile, T, SIZES: tl.constexpr):
    """The parts from a tile's first row on. place: among the lanes of all parts."""
    base = (tl.cast(place, tl.int64) * T) * SIZES.G + tile.row
    return Parts(parts.sums + base * SIZES.D, parts.largest + base, parts.total + base)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_flash_part(
    q, k, v, first, parts, broken, T, S, window, batches, score, SIZES: tl.constexpr, AGAIN: tl.constexpr
):
    """q: [B,T,Hq,D]; k, v: [B,S,Hkv,D]; first: see ``Bounds``; broken: int8 [programs, BLOCK_M].

    parts: sums [PARTS,B,Hkv,T*G,D], largest, total [PARTS,B,Hkv,T*G]. Grid: that of ``work_of``.
    """
    if AGAIN:
        if intact(broken, SIZES.BLOCK_M):
            return
    work = work_of(first, T, S, window, batches, SIZES)
    summed, largest, total = attend(q, k, v, work, score, SIZES, AGAIN)
    if not AGAIN:
        report(broken, summed)
    lanes = batches * SIZES.HKV
    place = tl.program_id(0) // lanes % SIZES.PARTS * lanes + tl.program_id(0) % lanes
    own = of_part(parts, place, work.tile, T, SIZES)
    ahead = tl.arange(0, SIZES.BLOCK_M)
    where = own.sums + (ahead[:, None] * SIZES.D + work.tile.columns[None, :])
    inside = inside_of(work.tile, T, SIZES)
    tl.store(where, summed, mask=inside)
    there = work.tile.rows < T * SIZES.G
    tl.store(own.largest + ahead, largest, mask=there)
    tl.store(own.total + ahead, total, mask=there)
    if AGAIN:
        unsound = sees_unsound(v, work, SIZES)
        tl.store(where, float("nan"), mask=inside & unsound)


@triton.jit(do_not_specialize=["T", "batches"])
def local_attention_flash_join(parts, first, out, lse, T, batches, SIZES: tl.constexpr):
    """out [B,T,Hq,D] and lse [B,Hq,T] from the parts. first: see ``Bounds``. Grid: tiles of [T * G] * B * Hkv."""
    lanes = batches * SIZES.HKV
    place = tl.program_id(0) % lanes
    lane = lane_of(place, SIZES)
    tile = tile_of(tl.program_id(0) // lanes * SIZES.BLOCK_M, SIZES)
    ahead = tl.arange(0, SIZES.BLOCK_M)
    there = tile.rows < T * SIZES.G
    inside = inside_of(tile, T, SIZES)
    most = tl.full(tile.rows.shape, float("-inf"), dtype=tl.float32)
    PARTS: tl.constexpr = SIZES.PARTS
    for part in tl.static_range(PARTS):
        own = of_part(parts, part * lanes + place, tile, T, SIZES)
        most = tl.maximum(most, tl.load(own.largest + ahead, mask=there, other=0.0))
    if first is not None:
        if first.blind is not None:
            blind = are_blind(first, lane, tl.minimum(tile.rows // SIZES.G, T - 1))
            most = tl.where(blind, 0.0, most)
    count = tl.zeros(tile.rows.shape, dtype=tl.float32)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    for part in tl.static_range(PARTS):
        own = of_part(parts, part * lanes + place, tile, T, SIZES)
        weight = tl.exp2(tl.load(own.largest + ahead, mask=there, other=0.0) - most)
        count += weight * tl.load(own.total + ahead, mask=there, other=1.0)
        where = own.sums + (ahead[:, None] * SIZES.D + tile.columns[None, :])
        summed += weight[:, None] * tl.load(where, mask=inside, other=0.0)
    if first is not None:
        if first.blind is not None:
            summed = tl.where(blind[:, None], 0.0, summed)
            most = tl.where(blind, float("-inf"), most)
            count = tl.where(blind, 1.0, count)
    store_rows(out, lane, tile, summed / count[:, None], T, SIZES)
    if lse is not None:
        store_lse(lse, lane, tile, most, count, T, SIZES)


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """What bounds the keys (see ``bounds``), the parts, then their join."""
    q, k, v = call.q, call.k, call.v
    tiles = _flash.forward_tiles(q, config)
    sizes = _flash.sizes_of(call, tiles, config.parts)
    rows, lanes = q.shape[1] * sizes.G, q.shape[0] * sizes.HKV
    args, before = _flash.arguments(call)
    out, lse = _flash.forward_outputs(call, outputs)
    parts = _flash.empty_parts((config.parts, lanes, rows), q)
    return [
        *before,
        *_flash.twice(
            kernel=local_attention_flash_part,
            tiles=tiles,
            sizes=sizes,
            programs=triton.cdiv(rows, tiles.block_m) * config.parts * lanes,
            rows=tiles.block_m,
            args=args | {"parts": parts},
            claims=_flash.claims((k, v), tiles),
        ),
        Launch(
            kernel=local_attention_flash_join,
            grid=(triton.cdiv(rows, JOINED) * lanes,),
            args={"parts": parts, "first": args["first"] if may_be_blind(call) else None, "out": out, "lse": lse}
            | {"T": q.shape[1], "batches": q.shape[0]},
            constexprs={"SIZES": sizes._replace(BLOCK_M=JOINED, BLOCK_N=0)},
            num_warps=4,
            tile=JOINED * sizes.BLOCK_D,
            claims=Claims(load_bits=128 if sizes.D % 32 == 0 else 32),
        ),
    ]


def rank(case: Case, device: Device) -> int:
    """The default where the tiles of triton.flash_window leave processors idle and there are keys to share."""
    tiles = _flash.forward_default(case["d"], case.dtype, device.arch)
    group = case["Hq"] // case["Hkv"]
    programs = case["B"] * case["Hkv"] * -(-case["T"] * group // tiles.block_m)
    # queries with as many keys before them as the window holds have twice the work of those that begin a sequence
    idle = programs < (1.25 if case["S"] - case["T"] >= case["W"] - 1 else 0.5) * device.units
    return 40 if idle and min(case["W"], case["S"]) >= 512 else 20


def traffic(case: Case, config: Config) -> int:
    """Besides the ideal: the float32 parts of out, written and read again."""
    parts = 2 * 4 * config.parts * case["B"] * case["T"] * case["Hq"] * (case["d"] + 2)
    return cost(case).bytes_total + parts


VARIANT = Variant(
    op="local_attention",
    name="triton.flash_split",
    summary="the keys of a tile split over programs, parts joined by a second launch",
    config=Config,
    axes={"parts": (2, 4, 8), "block_m": (64, 128), "block_n": (64, 32), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=_flash.reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
