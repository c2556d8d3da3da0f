"""Device code of the Triton decoding kernels: one new token against a part of its ring, and the join of parts.

The new key and value never come from the ring: one program takes them from the arguments, as the state that its online
softmax begins with, and writes them to their slot, which no program reads. So no order between programs matters.
Exponents in powers of two, as in local_attention/_triton_forward.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.dot import dot
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention._triton_jit import HIDDEN, LOG2E, offsets, tanh


@triton.jit
def exponents(scores, factor, softcap, CAPPED: tl.constexpr):
    """What 2 is raised to for raw scores q.k. factor: scale log2(e), or scale / softcap where there is one."""
    if CAPPED:
        return tanh(scores * factor) * (softcap * LOG2E)
    return scores * factor


@triton.jit(do_not_specialize=["P", "W"])
def local_attention_step_part(
    q,
    k,
    v,
    k_cache,
    v_cache,
    positions,
    slots,
    out,
    largest,
    total,
    P,
    W,
    factor,
    softcap,
    q_batch,
    k_batch,
    v_batch,
    k_cache_batch,
    v_cache_batch,
    positions_batch,
    slots_batch,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    Q_HEAD,
    Q_CHANNEL: tl.constexpr,
    K_HEAD,
    K_CHANNEL: tl.constexpr,
    V_HEAD,
    V_CHANNEL: tl.constexpr,
    K_CACHE_STEP,
    K_CACHE_HEAD,
    K_CACHE_CHANNEL: tl.constexpr,
    V_CACHE_STEP,
    V_CACHE_HEAD,
    V_CACHE_CHANNEL: tl.constexpr,
    CAPPED: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """q: [B,Hq,D]; k, v: [B,Hkv,D]; k_cache, v_cache: [P,W,Hkv,D], changed; positions, slots: int64 [B].

    PARTS = 1: out [B,Hq,D]. Else out [B,Hkv,PARTS,G,D], largest, total [B,Hkv,PARTS,G], float32, for the join.
    Grid: PARTS * Hkv * B, the parts of a row and head next to each other.
    """
    part = tl.program_id(0) % PARTS
    lane = tl.program_id(0) // PARTS
    batch = tl.cast(lane // HKV, tl.int64)
    head = tl.cast(lane % HKV, tl.int64)
    place = tl.load(positions + batch * positions_batch)
    row = batch
    if slots is not None:
        row = tl.load(slots + batch * slots_batch)
    real = (row >= 0) & (row < P) & (place >= 0)  # else nothing is touched and the output is 0
    slot = tl.where(real, place % W, 0).to(tl.int32)
    written = tl.where(real, tl.minimum(place, W), 0).to(tl.int32)  # slots 0 .. written - 1, all but the new one
    rows = tl.arange(0, BLOCK_G)
    columns = tl.arange(0, BLOCK_D)
    ahead = tl.arange(0, BLOCK_N)
    channels = columns < D
    inside = (rows[:, None] < G) & channels[None, :]
    q += batch * q_batch + head * (G * far(Q_HEAD))
    queries = tl.load(q + rows[:, None] * far(Q_HEAD) + columns[None, :] * Q_CHANNEL, mask=inside, other=0.0)
    k_cache += tl.maximum(row, 0) * k_cache_batch + head * far(K_CACHE_HEAD)
    v_cache += tl.maximum(row, 0) * v_cache_batch + head * far(V_CACHE_HEAD)
    largest_here = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    total_here = tl.zeros((BLOCK_G,), dtype=tl.float32)
    summed = tl.zeros((BLOCK_G, BLOCK_D), dtype=tl.float32)
    if (part == 0) & real:
        new_key = tl.load(k + batch * k_batch + head * far(K_HEAD) + columns * K_CHANNEL, mask=channels, other=0.0)
        new_value = tl.load(v + batch * v_batch + head * far(V_HEAD) + columns * V_CHANNEL, mask=channels, other=0.0)
        at = tl.cast(slot, tl.int64)
        tl.store(k_cache + at * far(K_CACHE_STEP) + columns * K_CACHE_CHANNEL, new_key, mask=channels)
        tl.store(v_cache + at * far(V_CACHE_STEP) + columns * V_CACHE_CHANNEL, new_value, mask=channels)
        products = queries.to(tl.float32) * new_key.to(tl.float32)[None, :]
        largest_here = exponents(tl.sum(products, axis=1), factor, softcap, CAPPED)
        total_here = tl.full((BLOCK_G,), 1.0, dtype=tl.float32)
        summed = summed + new_value.to(tl.float32)[None, :]
    share = tl.cdiv(W, PARTS * BLOCK_N) * BLOCK_N
    end = tl.minimum(written, (part + 1) * share)
    for start in tl.range(part * share, end, BLOCK_N):
        begin = tl.cast(start, tl.int64)
        key = start + ahead
        there = (key < end) & (key != slot)
        loaded = there[:, None]
        if D != BLOCK_D:
            loaded = loaded & channels[None, :]
        keys = tl.load(
            k_cache
            + begin * far(K_CACHE_STEP)
            + offsets(ahead, columns, far(K_CACHE_STEP), K_CACHE_CHANNEL, BLOCK_N, D),
            mask=loaded,
            other=0.0,
        )
        scores = exponents(dot(queries, tl.trans(keys)), factor, softcap, CAPPED)
        scores = tl.where(there[None, :], scores, HIDDEN)
        top = tl.maximum(largest_here, tl.max(scores, axis=1))
        weights = tl.exp2(scores - top[:, None])
        rescale = tl.exp2(largest_here - top)
        total_here = total_here * rescale + tl.sum(weights, axis=1)
        largest_here = top
        values = tl.load(
            v_cache
            + begin * far(V_CACHE_STEP)
            + offsets(ahead, columns, far(V_CACHE_STEP), V_CACHE_CHANNEL, BLOCK_N, D),
            mask=loaded,
            other=0.0,
        )
        summed = dot(weights.to(values.dtype), values, summed * rescale[:, None])
    if PARTS == 1:
        # a row that only pads has seen nothing: 0 / 1
        result = summed / tl.where(real, total_here, 1.0)[:, None]
        where = (batch * (HKV * G) + head * G + rows[:, None]) * D + columns[None, :]
        tl.store(out + where, result.to(out.dtype.element_ty), mask=inside)
    else:
        base = (tl.cast(lane, tl.int64) * PARTS + part) * G + rows
        tl.store(out + base[:, None] * D + columns[None, :], summed, mask=inside)
        tl.store(largest + base, largest_here, mask=rows < G)
        tl.store(total + base, total_here, mask=rows < G)


@triton.jit
def local_attention_step_join(
    sums,
    largest,
    total,
    out,
    G: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out [B,Hq,D] from sums [B*Hkv,PARTS,G,D], largest, total [B*Hkv,PARTS,G]. Grid: B * Hq."""
    lane = tl.cast(tl.program_id(0) // G, tl.int64)
    head = tl.program_id(0) % G
    parts = tl.arange(0, BLOCK_P)
    columns = tl.arange(0, BLOCK_D)
    there = parts < PARTS
    base = lane * (PARTS * G) + parts * G + head
    most = tl.load(largest + base, mask=there, other=float("-inf"))
    # every part of a row that only pads has -inf and no sum
    weights = tl.exp2(most - tl.maximum(tl.max(most, axis=0), HIDDEN))
    count = tl.sum(weights * tl.load(total + base, mask=there, other=0.0), axis=0)
    if D == BLOCK_D:
        inside = there[:, None]
    else:
        inside = there[:, None] & (columns[None, :] < D)
    tile = tl.load(sums + (base[:, None] * D + columns[None, :]), mask=inside, other=0.0)
    result = tl.sum(weights[:, None] * tile, axis=0) / tl.where(count > 0, count, 1.0)
    where = tl.cast(tl.program_id(0), tl.int64) * D + columns
    tl.store(out + where, result.to(out.dtype.element_ty), mask=columns < D)
