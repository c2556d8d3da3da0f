"""Flash attention within the window: a tile of queries against the tiles of keys that some of them sees.

A program owns BLOCK_M rows, BLOCK_M / G queries with all G heads of one key head, so keys and values are loaded once
for all of them. It visits keys first(t_0) .. e(t_1), where first is the beginning of the window or of the document:
nothing outside is loaded. Tiles that every row sees whole run without masks. The longest tiles start first.
Online softmax in float32 and powers of two; the weights are rounded to the data's dtype before the second product.

Bytes: q once and out, k and v (1 + W G / BLOCK_M) times, most of that from the L2 cache. Bound by the tensor cores
(4 d operations per pair of a query and a key), or where they wait for one exp2 per pair, by those.
Source: Dao, "FlashAttention-2" (2023), for the recurrence; FlashAttention-3's PackGQA for the packing of heads.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from griffin_kernels.contract import Case, Inputs, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention import _triton
from griffin_kernels.ops.local_attention._triton_forward import attend, unsound_values
from griffin_kernels.ops.local_attention._triton_jit import intact, load_rows, report, row_offsets, sight, span


@dataclass(frozen=True)
class Config:
    """block_m: rows, queries times heads of a key head, per program. block_n: keys per iteration.

    0 in any field: by head_dim, dtype and architecture, see ``_triton.forward_tiles``.
    """

    block_m: int = 0
    block_n: int = 0
    num_warps: int = 0
    num_stages: int = 0


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_flash(
    q,
    k,
    v,
    first,
    out,
    lse,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """q, out: [B,T,Hq,D]; k, v: [B,S,Hkv,D]; first: [B or 1,T] int32; lse: [B,Hq,T].

    broken: int8 [programs, BLOCK_M]. NEGATIVE: factor is that of -q. Grid: tiles of [T * G] * B * Hkv, the last first.
    """
    if AGAIN:
        if intact(broken, BLOCK_M):
            return
    lane = tl.program_id(0) % (batches * HKV)
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // (batches * HKV)
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    row = tile * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    origin = row // G
    if first is not None:
        first += batch * first_batch
    own, reach = sight(first, rows, T, S, window, G)
    low, full_low, full_high, high = span(first, reach, row, T, S, window, G, BLOCK_M)
    q += batch * q_batch + shared * (G * far(Q_HEAD)) + tl.cast(origin, tl.int64) * far(Q_STEP)
    queries = load_rows(q, rows, origin, columns, T, G, far(Q_STEP), far(Q_HEAD), Q_CHANNEL, D, BLOCK_M, BLOCK_D)
    if NEGATIVE:
        queries = -queries
    summed, largest, total = attend(
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
    OUT_STEP: tl.constexpr = HKV * G * D
    out += (batch * T + origin) * OUT_STEP + shared * (G * D)
    where = row_offsets(rows, origin, columns, T, G, OUT_STEP, D, 1, D, BLOCK_M)
    result = (summed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + where, result, mask=inside)
    if AGAIN:
        values = v + batch * v_batch + shared * far(V_HEAD)
        unsound = unsound_values(values, own, reach, low, high, far(V_STEP), V_CHANNEL, D, BLOCK_M, BLOCK_N, BLOCK_D)
        tl.store(out + where, float("nan"), mask=inside & unsound)
    if lse is not None:
        lse += (batch * HKV + shared) * tl.cast(T, tl.int64) * G
        tl.store(
            lse + (rows % G).to(tl.int64) * T + rows // G, (largest + tl.log2(total)) * 0.6931471805599453, mask=there
        )


def launches(inputs: Inputs, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """First keys (with documents only), then one program per tile of rows, key head and batch entry."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    batch, time, heads, d = q.shape
    shared = k.shape[2]
    tiles = _triton.forward_tiles(q, config)
    first, before = _triton.first_keys(inputs)
    out, lse = _triton.forward_outputs(inputs, outputs)
    programs = triton.cdiv(time * heads // shared, tiles.block_m) * batch * shared
    return [
        *before,
        *_triton.twice(
            kernel=local_attention_flash,
            programs=programs,
            rows=tiles.block_m,
            device=q.device,
            args={"q": q, "k": k, "v": v, "first": first, "out": out, "lse": lse}
            | _triton.sizes(inputs)
            | _triton.batch_strides({"q": q, "k": k, "v": v, "first": first}),
            constexprs=_triton.constexprs(inputs) | tiles.constexprs(d),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            tile=tiles.block_m * tiles.block_n,
            claims=_triton.claims((k, v), tiles),
        ),
    ]


def reject(case: Case, device: Device, config: Config) -> str | None:
    return _triton.unfit(case, device) or _triton.too_large(case, device, config)


VARIANT = Variant(
    op="local_attention",
    name="triton.flash_window",
    summary="flash attention within the window, heads of a key head packed into rows",
    config=Config,
    axes={"block_m": (64, 128), "block_n": (128, 64, 32), "num_warps": (4, 8), "num_stages": (2, 3)},
    reject=reject,
    rank=lambda case, device: 30,
    launches=launches,
)
