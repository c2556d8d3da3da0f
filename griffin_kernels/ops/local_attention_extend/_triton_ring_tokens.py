"""The Triton kernel of several new tokens against a ring and each other, and its launches.

Packed rows as in local_attention/_triton_attention.py: row r of T * G is token r // G, head r % G of a key head. Keys
have an index in order of their positions: those that the first token sees of the ring come first, 0 .. old - 1, then
the call's own, which come from the arguments. Token t is key old + t. The programs of the last part take the new keys
and write them to their slots, which no program reads. So no order between programs matters.
Isolation: what no row of a tile sees is not read. Where rows of a tile see different keys, values that are not finite
count as 0, and rows that see one give NaN in all channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, WITHOUT_PRODUCTS, over_shared
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case, dtype_name
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.host import empty, row_stride
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention import _flash as attention
from griffin_kernels.ops.local_attention._flash import Tiles, padded
from griffin_kernels.ops.local_attention._triton_attention import (
    HIDDEN,
    Parts,
    Score,
    Sizes,
    cleared,
    in_channels,
    inside_of,
    lane_of,
    load_keys,
    load_rows,
    of_head,
    sound,
    store_rows,
    tile_of,
    zeros,
)
from griffin_kernels.ops.local_attention_extend.op import Call, ring_of
from griffin_kernels.ops.local_attention_step._triton_decoding import exponents, local_attention_step_join


class Owners(NamedTuple):
    """Which ring a row works on: slots [B], or tables [B,pages] contiguous along pages; the stride along the batch.

    SIZE: slots of a page; 0 where a ring is one row of the pool.
    """

    at: Any
    batch: Any
    SIZE: Any


@triton.jit
def in_slots(cache, row, lane, slot, SIZES: tl.constexpr):
    """Pointers [block_n, block_d] to a lane's keys or values in slots [block_n] of a row's ring.

    row: of the pool; or [block_n], the page of each slot, of which ``slot`` then is the row.
    """
    columns = tl.arange(0, SIZES.BLOCK_D)
    if row.type.is_block():
        head = cache.at + lane.shared * far(cache.head)
        rows = row.to(tl.int64) * cache.batch + slot.to(tl.int64) * far(cache.step)
        pointers = head + (rows[:, None] + columns[None, :] * cache.channel)
    else:
        base = of_head(cache, row, lane.shared)
        pointers = base + (slot.to(tl.int64)[:, None] * far(cache.step) + columns[None, :] * cache.channel)
    return pointers


@triton.jit
def places_of(owners, row, lane, slot, there, P):
    """(row, slot, there) as ``in_slots`` takes them: of pages, those alone that are there and in the pool."""
    if owners is not None:
        if owners.SIZE > 0:
            entries = owners.at + lane.batch * owners.batch + slot // owners.SIZE
            row = tl.load(entries, mask=there, other=-1)
            there = there & (row >= 0) & (row < P)
            slot = slot % owners.SIZE
    return row, slot, there


@triton.jit
def wrapped(slot, R):
    """Slots of a ring of R from numbers below 2 R."""
    return tl.where(slot >= R, slot - R, slot)


@triton.jit
def put_tokens(new, cache, owners, row, lane, begin, end, origin, P, R, SIZES: tl.constexpr):
    """Write new tokens begin .. end - 1 to their slots; that of token 0 is ``origin``."""
    columns = tl.arange(0, SIZES.BLOCK_D)
    for start in tl.range(begin, end, SIZES.BLOCK_N):
        token = start + tl.arange(0, SIZES.BLOCK_N)
        there = token < end
        tile = load_keys(new, lane.batch, lane.shared, start, there, SIZES)
        own, slot, there = places_of(owners, row, lane, wrapped(origin + token, R), there, P)
        into = in_slots(cache, own, lane, slot, SIZES)
        tl.store(into, tile, mask=in_channels(there[:, None], columns, SIZES))


@triton.jit
def take_in(queries, keys, values, seen, sums, score):
    """The sums (weighted values, largest exponents, sums of weights) with a tile of keys and values taken in.

    seen: bool [block_m, block_n].
    """
    summed, largest, total = sums
    scores = tl.where(seen, exponents(dot(queries, tl.trans(keys)), score), HIDDEN)
    top = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - top[:, None])
    rescale = tl.exp2(largest - top)
    total = total * rescale + tl.sum(weights, axis=1)
    summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    return summed, top, total


@triton.jit
def spoilt_by(values, seen):
    """int32 [block_m]: 1 for rows that see a value that is not finite."""
    bad = tl.max(tl.where(sound(values), 0, 1), axis=1)
    return tl.max(tl.where(seen, bad[None, :], 0), axis=1)


@triton.jit(do_not_specialize=["T", "P", "R", "window"])
def local_attention_extend_part(
    q, k, v, k_cache, v_cache, positions, slots, lengths, out, T, P, R, window, score, pad, SIZES: tl.constexpr
):
    """q: [B,T,Hq,D]; k, v: [B,T,Hkv,D]; k_cache, v_cache: [P,R,Hkv,D], changed; slots: Owners; others: int64 [B].

    PARTS = 1: out.sums is [B,T,Hq,D]. Else out has sums [B,T,Hkv,PARTS,G,D], largest, total [B,T,Hkv,PARTS,G].
    Grid: PARTS * tiles of [T * G] * Hkv * B, the parts of a tile next to each other.
    """
    part = tl.program_id(0) % SIZES.PARTS
    tiles = tl.cdiv(T * SIZES.G, SIZES.BLOCK_M)
    lane = lane_of(tl.program_id(0) // SIZES.PARTS // tiles, SIZES)
    tile = tile_of(tl.program_id(0) // SIZES.PARTS % tiles * SIZES.BLOCK_M, SIZES)
    position = tl.load(positions.at + lane.batch * positions.batch)
    row = lane.batch
    if slots is not None:
        row = tl.load(slots.at + lane.batch * slots.batch)
    real = (row >= 0) & (row < P) & (position >= 0)  # else nothing is touched and the output is 0
    if pad is not None:
        real = real & (row != pad)
    tokens = T
    if lengths is not None:
        tokens = tl.minimum(tl.maximum(tl.load(lengths.at + lane.batch * lengths.batch), 0), T).to(tl.int32)
    tokens = tl.where(real, tokens, 0)
    row = tl.maximum(row, 0)
    old = tl.where(real, tl.minimum(position, window - 1), 0).to(tl.int32)
    origin = tl.where(real, (position - old) % R, 0).to(tl.int32)  # the slot of key 0
    token = tile.rows // SIZES.G
    first = tile.row // SIZES.G
    last = tl.minimum((tile.row + SIZES.BLOCK_M - 1) // SIZES.G, tokens - 1)
    reach = old + token - window + 1  # the first key that each row sees
    share = tl.cdiv(window - 1, SIZES.PARTS * SIZES.BLOCK_N) * SIZES.BLOCK_N
    low = tl.maximum(part * share, old + first - window + 1)
    high = tl.where(first < tokens, tl.minimum(old, (part + 1) * share), 0)
    # keys from here on are seen by every token, in whole blocks from low on
    full = low + tl.cdiv(tl.maximum(old + last - window + 1 - low, 0), SIZES.BLOCK_N) * SIZES.BLOCK_N
    queries = load_rows(q, lane, tile, T, SIZES)
    largest = tl.full(tile.rows.shape, float("-inf"), dtype=tl.float32)
    total = tl.zeros(tile.rows.shape, dtype=tl.float32)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    spoilt = tl.zeros(tile.rows.shape, dtype=tl.int32)
    offset = tl.arange(0, SIZES.BLOCK_N)
    columns = tile.columns
    for start in tl.range(low, tl.minimum(full, high), SIZES.BLOCK_N):
        slot = wrapped(origin + start + offset, R)
        own, slot, there = places_of(slots, row, lane, slot, start + offset < high, P)
        seen = there[None, :] & (start + offset[None, :] >= reach[:, None])
        inside = in_channels(there[:, None], columns, SIZES)
        keys = tl.load(in_slots(k_cache, own, lane, slot, SIZES), mask=inside, other=0.0)
        values = tl.load(in_slots(v_cache, own, lane, slot, SIZES), mask=inside, other=0.0)
        spoilt = tl.maximum(spoilt, spoilt_by(values, seen))
        summed, largest, total = take_in(queries, keys, cleared(values), seen, (summed, largest, total), score)
    for start in tl.range(full, high, SIZES.BLOCK_N):
        slot = wrapped(origin + start + offset, R)
        own, slot, there = places_of(slots, row, lane, slot, start + offset < high, P)
        inside = in_channels(there[:, None], columns, SIZES)
        keys = tl.load(in_slots(k_cache, own, lane, slot, SIZES), mask=inside, other=0.0)
        values = tl.load(in_slots(v_cache, own, lane, slot, SIZES), mask=inside, other=0.0)
        summed, largest, total = take_in(queries, keys, values, there[None, :], (summed, largest, total), score)
    if part == SIZES.PARTS - 1:
        for start in tl.range(tl.maximum(first - window + 1, 0), last + 1, SIZES.BLOCK_N):
            there = start + offset <= last
            key = old + start + offset[None, :]
            seen = there[None, :] & (key >= reach[:, None]) & (key <= old + token[:, None])
            keys = load_keys(k, lane.batch, lane.shared, start, there, SIZES)
            values = load_keys(v, lane.batch, lane.shared, start, there, SIZES)
            spoilt = tl.maximum(spoilt, spoilt_by(values, seen))
            summed, largest, total = take_in(queries, keys, cleared(values), seen, (summed, largest, total), score)
        begin = tl.cdiv(tile.row, SIZES.G)
        end = tl.minimum(tl.cdiv(tile.row + SIZES.BLOCK_M, SIZES.G), tokens)
        put_tokens(k, k_cache, slots, row, lane, begin, end, wrapped(origin + old, R), P, R, SIZES)
        put_tokens(v, v_cache, slots, row, lane, begin, end, wrapped(origin + old, R), P, R, SIZES)
    seeing = token < tokens
    summed = tl.where((spoilt > 0)[:, None], float("nan"), summed)
    summed = tl.where(seeing[:, None], summed, 0.0)
    if SIZES.PARTS == 1:
        store_rows(out.sums, lane, tile, summed / tl.where(seeing, total, 1.0)[:, None], T, SIZES)
    else:
        base = (lane.batch * T + token) * SIZES.HKV + lane.shared
        base = (base * SIZES.PARTS + part) * SIZES.G + tile.rows % SIZES.G
        within = tile.rows < T * SIZES.G
        tl.store(out.sums + base[:, None] * SIZES.D + columns[None, :], summed, mask=inside_of(tile, T, SIZES))
        tl.store(out.largest + base, tl.where(seeing, largest, float("-inf")), mask=within)
        tl.store(out.total + base, tl.where(seeing, total, 0.0), mask=within)


def tiles_for(rows: int, d: int, dtype: str, arch: str, config: Any) -> Tiles:
    """What a Config of zeros means: no higher than there are ``rows`` of a key head, and sums in registers."""
    wide, amd = padded(d), arch.startswith("gfx")
    # where a warp keeps its queries in registers, 64 rows of 256 channels would spill
    tall = dtype != "float32" and (amd or wide <= 128 or arch in attention.WARP_GROUPS)
    height = min(64 if tall else 32, max(16, triton.next_power_of_2(rows)))
    warps = 8 if height * wide > 16 * 256 and not amd else 4
    stages = 2 if amd or not attention.roomy(arch) else 3
    return Tiles(height, 16 if dtype == "float32" and wide > 128 else 32, warps, stages).chosen(config)


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """The keys in ``config.parts`` or one, for every tile of rows, and their join where there are several."""
    q, k_cache, v_cache, lengths, softcap = call.q, call.k_cache, call.v_cache, call.lengths, call.softcap
    batch, time, heads, d = q.shape
    shared = k_cache.shape[2]
    group, arch = heads // shared, launch.architecture(q)
    chosen = tiles_for(time * group, d, dtype_name(q.dtype), arch, config)
    parts = min(getattr(config, "parts", 1), max(1, triton.cdiv(call.window - 1, chosen.block_n)))
    sizes = Sizes(group, shared, d, chosen.block_m, chosen.block_n, padded(d), parts)
    result = empty(outputs, "out", q, *q.shape, dtype=q.dtype)
    outputs |= {"k_cache": k_cache, "v_cache": v_cache}
    out = attention.empty_parts((batch * time * shared, parts, group), q) if parts > 1 else Parts(result, None, None)
    scale = float(d**-0.5 if call.scale is None else call.scale)
    factor = scale * attention.LOG2E if softcap is None else scale / softcap
    bits = attention.load_bits((k_cache, v_cache))
    args: dict[str, Any] = {name: attention.heads(getattr(call, name)) for name in ("q", "k", "v")}
    args |= {name: attention.heads(getattr(call, name)) for name in ("k_cache", "v_cache")}
    args |= {
        "positions": attention.entries(call.positions),
        "slots": _owners(call),
        "lengths": None if lengths is None else attention.entries(lengths),
        "out": out,
        "T": time,
        "P": k_cache.shape[0],
        "R": ring_of(call),
        "window": call.window,
        "score": Score(scale, factor, softcap, tl.constexpr(False)),
        "pad": call.pad_slot if call.pad_slot >= 0 else None,
    }
    found = [
        Launch(
            kernel=local_attention_extend_part,
            grid=(batch * shared * triton.cdiv(time * group, chosen.block_m) * parts,),
            args=args,
            constexprs={"SIZES": sizes},
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            tile=chosen.block_n * padded(d),
            claims=Claims(load_bits=bits, async_copies=chosen.num_stages > 1 and bits >= 32),
        )
    ]
    if parts > 1:
        found.append(
            Launch(
                kernel=local_attention_step_join,
                grid=(batch * time * heads,),
                args={"parts": out, "out": result},
                constexprs={"SIZES": sizes, "BLOCK_P": triton.next_power_of_2(parts)},
                num_warps=4,
                tile=parts * padded(d),
            )
        )
    return found


def _owners(call: Call) -> Owners | None:
    """The rings of the rows; None where row b works on ring b."""
    if call.block_table is not None:
        table = call.block_table.contiguous()
        return Owners(table, row_stride(table, 0), tl.constexpr(call.k_cache.shape[1]))
    return None if call.slots is None else Owners(*attention.entries(call.slots), tl.constexpr(0))


def unfit(case: Case, device: Device, config: Any) -> str | None:
    """Why the kernel does not run this case with this configuration, if so."""
    if reason := attention.unfit(case, device):
        return reason
    if device.arch in WITHOUT_PRODUCTS:
        return f"Triton has no matrix instructions for {device.arch}: products one by one would spill registers"
    chosen = tiles_for(case["T"] * (case["Hq"] // case["Hkv"]), case["d"], case.dtype, device.arch, config)
    width = padded(case["d"]) * DTYPE_BYTES[case.dtype]
    weights = chosen.block_m * chosen.block_n * 4
    amd = device.kind == "hip"
    # each loop has buffers of its own, which are free for the next one
    ahead = 2 * max(1, chosen.num_stages - amd) * chosen.block_n * width
    queries = 0 if amd else chosen.block_m * width
    return over_shared(ahead + queries + weights + SCRATCH, device.arch)
