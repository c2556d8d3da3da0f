"""The Triton decoding kernels, one new token against a part of its ring and the join of parts, and their launches.

The new key and value never come from the ring: one program takes them from the arguments, as the state that its online
softmax begins with, and writes them to their slot, which no program reads. So no order between programs matters.
Exponents in powers of two, as in local_attention/_triton_attention.py.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.architectures import SCRATCH, WITHOUT_PRODUCTS, over_shared
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import Case
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.host import channel_stride, empty, known_stride, row_stride
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention import _flash as attention
from griffin_kernels.ops.local_attention._flash import padded
from griffin_kernels.ops.local_attention._triton_attention import (
    HIDDEN,
    LOG2E,
    Heads,
    Parts,
    Score,
    Sizes,
    in_channels,
    lane_of,
    load_keys,
    of_head,
    tanh,
    zeros,
)
from griffin_kernels.ops.local_attention_step.op import Call

MOST_HEADS = 128
"""Query heads of a key head: rows of a tile whose sums fit in registers."""


@triton.jit
def exponents(scores, score):
    """What 2 is raised to for raw scores q.k."""
    if score.softcap is not None:
        return tanh(scores * score.factor) * (score.softcap * LOG2E)
    return scores * score.factor


@triton.jit
def put(new, cache, lane, row, slot, columns, SIZES: tl.constexpr):
    """Write a lane's new key or value [block_d] into its slot of a row."""
    into = of_head(cache, row, lane.shared) + tl.cast(slot, tl.int64) * far(cache.step)
    tl.store(into + columns * cache.channel, new, mask=columns < SIZES.D)


@triton.jit(do_not_specialize=["P", "W"])
def local_attention_step_part(q, k, v, k_cache, v_cache, positions, slots, out, P, W, score, pad, SIZES: tl.constexpr):
    """q: [B,Hq,D]; k, v: [B,Hkv,D]; k_cache, v_cache: [P,W,Hkv,D], changed; positions, slots: int64 [B].

    PARTS = 1: out.sums is [B,Hq,D]. Else out has sums [B,Hkv,PARTS,G,D], largest, total [B,Hkv,PARTS,G], for the join.
    Grid: PARTS * Hkv * B, the parts of a row and head next to each other.
    """
    part = tl.program_id(0) % SIZES.PARTS
    lane = lane_of(tl.program_id(0) // SIZES.PARTS, SIZES)
    place = tl.load(positions.at + lane.batch * positions.batch)
    row = lane.batch
    if slots is not None:
        row = tl.load(slots.at + lane.batch * slots.batch)
    real = (row >= 0) & (row < P) & (place >= 0)  # else nothing is touched and the output is 0
    if pad is not None:
        real = real & (row != pad)
    new = tl.where(real, place % W, 0).to(tl.int32)
    written = tl.where(real, tl.minimum(place, W), 0).to(tl.int32)  # slots 0 .. written - 1, all but the new one
    share = tl.cdiv(W, SIZES.PARTS * SIZES.BLOCK_N) * SIZES.BLOCK_N
    low, high = part * share, tl.minimum(written, (part + 1) * share)
    row = tl.maximum(row, 0)
    rows = tl.arange(0, SIZES.BLOCK_M)
    columns = tl.arange(0, SIZES.BLOCK_D)
    inside = (rows[:, None] < SIZES.G) & (columns[None, :] < SIZES.D)
    queries = of_head(q, lane.batch, lane.shared * SIZES.G)
    queries += rows[:, None] * far(q.head) + columns[None, :] * q.channel
    queries = tl.load(queries, mask=inside, other=0.0)
    largest = tl.full(rows.shape, float("-inf"), dtype=tl.float32)
    total = tl.zeros(rows.shape, dtype=tl.float32)
    summed = zeros(SIZES.BLOCK_M, SIZES.BLOCK_D)
    if (part == 0) & real:
        channels = columns < SIZES.D
        new_key = tl.load(of_head(k, lane.batch, lane.shared) + columns * k.channel, mask=channels, other=0.0)
        new_value = tl.load(of_head(v, lane.batch, lane.shared) + columns * v.channel, mask=channels, other=0.0)
        put(new_key, k_cache, lane, row, new, columns, SIZES)
        put(new_value, v_cache, lane, row, new, columns, SIZES)
        products = queries.to(tl.float32) * new_key.to(tl.float32)[None, :]
        largest = exponents(tl.sum(products, axis=1), score)
        total = tl.full(rows.shape, 1.0, dtype=tl.float32)
        summed = summed + new_value.to(tl.float32)[None, :]
    for start in tl.range(low, high, SIZES.BLOCK_N):
        key = start + tl.arange(0, SIZES.BLOCK_N)
        there = (key < high) & (key != new)
        keys = load_keys(k_cache, row, lane.shared, start, there, SIZES)
        scores = exponents(dot(queries, tl.trans(keys)), score)
        scores = tl.where(there[None, :], scores, HIDDEN)
        top = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - top[:, None])
        rescale = tl.exp2(largest - top)
        total = total * rescale + tl.sum(weights, axis=1)
        largest = top
        values = load_keys(v_cache, row, lane.shared, start, there, SIZES)
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    if SIZES.PARTS == 1:
        # a row that only pads has seen nothing: 0 / 1
        result = summed / tl.where(real, total, 1.0)[:, None]
        head = lane.batch * (SIZES.HKV * SIZES.G) + lane.shared * SIZES.G + rows[:, None]
        tl.store(out.sums + head * SIZES.D + columns[None, :], result, mask=inside)
    else:
        base = tl.cast(tl.program_id(0), tl.int64) * SIZES.G + rows
        tl.store(out.sums + base[:, None] * SIZES.D + columns[None, :], summed, mask=inside)
        tl.store(out.largest + base, largest, mask=rows < SIZES.G)
        tl.store(out.total + base, total, mask=rows < SIZES.G)


@triton.jit
def local_attention_step_join(parts, out, SIZES: tl.constexpr, BLOCK_P: tl.constexpr):
    """out [B,Hq,D] from sums [B*Hkv,PARTS,G,D], largest, total [B*Hkv,PARTS,G]. Grid: B * Hq."""
    lane = tl.cast(tl.program_id(0) // SIZES.G, tl.int64)
    head = tl.program_id(0) % SIZES.G
    part = tl.arange(0, BLOCK_P)
    columns = tl.arange(0, SIZES.BLOCK_D)
    there = part < SIZES.PARTS
    base = lane * (SIZES.PARTS * SIZES.G) + part * SIZES.G + head
    most = tl.load(parts.largest + base, mask=there, other=float("-inf"))
    # every part of a row that only pads has -inf and no sum
    weights = tl.exp2(most - tl.maximum(tl.max(most, axis=0), HIDDEN))
    count = tl.sum(weights * tl.load(parts.total + base, mask=there, other=0.0), axis=0)
    inside = in_channels(there[:, None], columns, SIZES)
    tile = tl.load(parts.sums + (base[:, None] * SIZES.D + columns[None, :]), mask=inside, other=0.0)
    result = tl.sum(weights[:, None] * tile, axis=0) / tl.where(count > 0, count, 1.0)
    where = tl.cast(tl.program_id(0), tl.int64) * SIZES.D + columns
    tl.store(out + where, result, mask=columns < SIZES.D)


def launches(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """The ring in ``config.parts`` or one, for every row and key head, and their join where there are several."""
    q, k_cache, v_cache, slots, softcap = call.q, call.k_cache, call.v_cache, call.slots, call.softcap
    batch, heads, d = q.shape
    shared = k_cache.shape[2]
    group, lanes = heads // shared, batch * shared
    parts = min(getattr(config, "parts", 1), triton.cdiv(k_cache.shape[1], config.block_n))
    sizes = Sizes(group, shared, d, max(16, triton.next_power_of_2(group)), config.block_n, padded(d), parts)
    result = empty(outputs, "out", q, *q.shape, dtype=q.dtype)
    outputs |= {"k_cache": k_cache, "v_cache": v_cache}
    out = attention.empty_parts((lanes, parts, group), q) if parts > 1 else Parts(result, None, None)
    scale = float(d**-0.5 if call.scale is None else call.scale)
    factor = scale * attention.LOG2E if softcap is None else scale / softcap
    arch = launch.architecture(q)
    stages = stages_of(config, amd=arch.startswith("gfx"))
    bits = attention.load_bits((k_cache, v_cache))
    args: dict[str, Any] = {"q": token(q), "k": token(call.k), "v": token(call.v)}
    args |= {"k_cache": attention.heads(k_cache), "v_cache": attention.heads(v_cache), "out": out}
    args |= {"slots": None if slots is None else attention.entries(slots), "P": k_cache.shape[0], "W": k_cache.shape[1]}
    args |= {
        "positions": attention.entries(call.positions),
        "score": Score(scale, factor, softcap, tl.constexpr(False)),
        "pad": call.pad_slot if call.pad_slot >= 0 else None,
    }
    found = [
        Launch(
            kernel=local_attention_step_part,
            grid=(lanes * parts,),
            args=args,
            constexprs={"SIZES": sizes},
            num_warps=config.num_warps,
            num_stages=stages,
            tile=config.block_n * padded(d),
            claims=Claims(
                load_bits=bits,
                async_copies=stages > 1 and bits >= 32,
                spills="16 bytes a thread, none of them in the loop" if arch in ("sm_86", "sm_89") else "",
            ),
        )
    ]
    if parts > 1:
        found.append(
            Launch(
                kernel=local_attention_step_join,
                grid=(batch * heads,),
                args={"parts": out, "out": result},
                constexprs={"SIZES": sizes, "BLOCK_P": triton.next_power_of_2(parts)},
                num_warps=4,
                tile=parts * padded(d),
            )
        )
    return found


def stages_of(config: Any, amd: bool) -> int:
    """What num_stages=0 means: three on NVIDIA, two on AMD, whose shared memory is smaller."""
    return config.num_stages or (2 if amd else 3)


def token(tensor: Tensor) -> Heads:
    """The bundle of [B,H,d]; strides as if contiguous where a dim is of size 1."""
    return Heads(tensor, row_stride(tensor, 0), None, known_stride(tensor, 1), tl.constexpr(channel_stride(tensor)))


def unfit(case: Case, device: Device, config: Any) -> str | None:
    """Why no kernel here runs this case with this configuration, if so."""
    if reason := attention.unfit(case, device):
        return reason
    if device.arch in WITHOUT_PRODUCTS:
        return f"Triton has no matrix instructions for {device.arch}: products one by one would spill registers"
    group = case["Hq"] // case["Hkv"]
    if group > MOST_HEADS:
        return f"{group} query heads share a key head, {MOST_HEADS} at most fit in registers"
    rows = max(16, triton.next_power_of_2(group))
    weights = rows * config.block_n * 4
    width = padded(case["d"]) * DTYPE_BYTES[case.dtype]
    amd = device.kind == "hip"
    # rows this few are products of one warp, whatever the architecture, and a buffer is free when it has been read
    ahead = 2 * max(1, stages_of(config, amd) - 1) * config.block_n * width
    queries = 0 if amd else rows * width
    return over_shared(ahead + queries + weights + SCRATCH, device.arch)
