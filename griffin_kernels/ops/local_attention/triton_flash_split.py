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

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Claims, Launch
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention import _triton
from griffin_kernels.ops.local_attention._triton_forward import attend, unsound_values
from griffin_kernels.ops.local_attention._triton_jit import intact, load_rows, report, row_offsets, sight, span
from griffin_kernels.ops.local_attention.cost import cost

JOINED = 16
"""Rows per program of the kernel that joins parts."""


@dataclass(frozen=True)
class Config:
    """parts: programs that share the keys of a tile. block_m: rows, queries times heads of a key head, of a tile.

    block_n: keys per iteration. 0 in any field but parts: by head_dim, dtype and architecture, see
    ``_triton.forward_default``.
    """

    parts: int = 4
    block_m: int = 0
    block_n: int = 0
    num_warps: int = 0
    num_stages: int = 0


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_flash_part(
    q,
    k,
    v,
    first,
    sums,
    largest,
    total,
    broken,
    T,
    S,
    window,
    batches,
    factor,
    softcap,
    q_batch,
    k_batch,
    v_batch,
    first_batch,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    Q_STEP,
    Q_HEAD,
    Q_CHANNEL: tl.constexpr,
    K_STEP,
    K_HEAD,
    K_CHANNEL: tl.constexpr,
    V_STEP,
    V_HEAD,
    V_CHANNEL: tl.constexpr,
    CAPPED: tl.constexpr,
    NEGATIVE: tl.constexpr,
    AGAIN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """q: [B,T,Hq,D]; k, v: [B,S,Hkv,D]; first: [B or 1,T] int32.

    sums [PARTS,B,Hkv,T*G,D], largest, total [PARTS,B,Hkv,T*G] float32: what ``attend`` gives for each part.
    broken: int8 [programs, BLOCK_M]. Grid: tiles of [T * G] * PARTS * B * Hkv, the last tiles first.
    """
    if AGAIN:
        if intact(broken, BLOCK_M):
            return
    lanes = batches * HKV
    lane = tl.program_id(0) % lanes
    part = tl.program_id(0) // lanes % PARTS
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // (lanes * PARTS) * BLOCK_M
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    rows = row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    origin = row // G
    if first is not None:
        first += batch * first_batch
    own, reach = sight(first, rows, T, S, window, G)
    low, full_low, full_high, high = span(first, reach, row, T, S, window, G, BLOCK_M)
    share = tl.cdiv(high - low, PARTS * BLOCK_N) * BLOCK_N
    low += part * share
    high = tl.minimum(high, low + share)
    q += batch * q_batch + shared * (G * far(Q_HEAD)) + tl.cast(origin, tl.int64) * far(Q_STEP)
    queries = load_rows(q, rows, origin, columns, T, G, far(Q_STEP), far(Q_HEAD), Q_CHANNEL, D, BLOCK_M, BLOCK_D)
    if NEGATIVE:
        queries = -queries
    summed, most, count = attend(
        queries,
        k + batch * k_batch + shared * far(K_HEAD),
        v + batch * v_batch + shared * far(V_HEAD),
        own,
        reach,
        low,
        full_low,
        full_high,
        high,
        factor,
        softcap,
        K_STEP=far(K_STEP),
        K_CHANNEL=K_CHANNEL,
        V_STEP=far(V_STEP),
        V_CHANNEL=V_CHANNEL,
        D=D,
        CAPPED=CAPPED,
        AGAIN=AGAIN,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
    )
    if not AGAIN:
        report(broken, summed, BLOCK_M)
    there = rows < T * G
    inside = there[:, None]
    if D != BLOCK_D:
        inside = inside & (columns[None, :] < D)
    base = (tl.cast(part * lanes + lane, tl.int64) * T) * G + row
    ahead = tl.arange(0, BLOCK_M)
    where = sums + base * D + (ahead[:, None] * D + columns[None, :])
    tl.store(where, summed, mask=inside)
    if AGAIN:
        values = v + batch * v_batch + shared * far(V_HEAD)
        unsound = unsound_values(values, own, reach, low, high, far(V_STEP), V_CHANNEL, D, BLOCK_M, BLOCK_N, BLOCK_D)
        tl.store(where, float("nan"), mask=inside & unsound)
    tl.store(largest + base + ahead, most, mask=there)
    tl.store(total + base + ahead, count, mask=there)


@triton.jit(do_not_specialize=["T", "batches"])
def local_attention_flash_join(
    sums,
    largest,
    total,
    out,
    lse,
    T,
    batches,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out [B,T,Hq,D] and lse [B,Hq,T] from the parts. Grid: tiles of [T * G] * B * Hkv."""
    lanes = batches * HKV
    lane = tl.program_id(0) % lanes
    row = tl.program_id(0) // lanes * BLOCK_M
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    ahead = tl.arange(0, BLOCK_M)
    rows = row + ahead
    columns = tl.arange(0, BLOCK_D)
    origin = row // G
    there = rows < T * G
    inside = there[:, None]
    if D != BLOCK_D:
        inside = inside & (columns[None, :] < D)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        base = (tl.cast(part * lanes + lane, tl.int64) * T) * G + row
        most = tl.maximum(most, tl.load(largest + base + ahead, mask=there, other=0.0))
    count = tl.zeros((BLOCK_M,), dtype=tl.float32)
    summed = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        base = (tl.cast(part * lanes + lane, tl.int64) * T) * G + row
        weight = tl.exp2(tl.load(largest + base + ahead, mask=there, other=0.0) - most)
        count += weight * tl.load(total + base + ahead, mask=there, other=1.0)
        tile = tl.load(sums + base * D + (ahead[:, None] * D + columns[None, :]), mask=inside, other=0.0)
        summed += weight[:, None] * tile
    OUT_STEP: tl.constexpr = HKV * G * D
    out += (batch * T + origin) * OUT_STEP + shared * (G * D)
    where = row_offsets(rows, origin, columns, T, G, OUT_STEP, D, 1, D, BLOCK_M)
    tl.store(out + where, (summed / count[:, None]).to(out.dtype.element_ty), mask=inside)
    if lse is not None:
        lse += (batch * HKV + shared) * tl.cast(T, tl.int64) * G
        value = (most + tl.log2(count)) * 0.6931471805599453
        tl.store(lse + (rows % G).to(tl.int64) * T + rows // G, value, mask=there)


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """First keys (with documents only), the parts, then their join."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    batch, time, heads, d = q.shape
    shared, parts = k.shape[2], config.parts
    group, lanes = heads // shared, batch * shared
    tiles = _triton.forward_tiles(q, config)
    first, before = _triton.first_keys(inputs)
    out, lse = _triton.forward_outputs(inputs, outputs)
    sums = torch.empty((parts, lanes, time * group, d), dtype=torch.float32, device=q.device)
    largest, total = (torch.empty(sums.shape[:3], dtype=torch.float32, device=q.device) for _ in "mt")
    partial = {"sums": sums, "largest": largest, "total": total}
    sizes = _triton.sizes(inputs)
    return [
        *before,
        *_triton.twice(
            kernel=local_attention_flash_part,
            programs=triton.cdiv(time * group, tiles.block_m) * parts * lanes,
            rows=tiles.block_m,
            device=q.device,
            args={"q": q, "k": k, "v": v, "first": first}
            | partial
            | sizes
            | _triton.batch_strides({"q": q, "k": k, "v": v, "first": first}),
            constexprs=_triton.constexprs(inputs) | tiles.constexprs(d) | {"PARTS": parts},
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            tile=tiles.block_m * tiles.block_n,
            claims=_triton.claims((k, v), tiles),
        ),
        Launch(
            kernel=local_attention_flash_join,
            grid=(triton.cdiv(time * group, JOINED) * lanes,),
            args=partial | {"out": out, "lse": lse, "T": time, "batches": batch},
            constexprs={
                "G": group,
                "HKV": shared,
                "D": d,
                "PARTS": parts,
                "BLOCK_M": JOINED,
                "BLOCK_D": _triton.padded(d),
            },
            num_warps=4,
            tile=JOINED * _triton.padded(d),
            claims=Claims(load_bits=128 if d % 32 == 0 else 32),
        ),
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit(case, device) or _triton.too_large(case, device, config)


def rank(case: Case, device: Device) -> int:
    """The default where the tiles of triton.flash_window leave processors idle and there are keys to share."""
    tiles = _triton.forward_default(case["d"], case.dtype, device.arch)
    group = case["Hq"] // case["Hkv"]
    programs = case["B"] * case["Hkv"] * -(-case["T"] * group // tiles.block_m)
    return 40 if 2 * programs < device.units and min(case["W"], case["S"]) >= 512 else 20


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
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
