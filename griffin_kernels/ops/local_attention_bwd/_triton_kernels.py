"""The kernels of the backward pass. Lanes are pairs of a batch entry and a key head, the fastest place in a grid."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from griffin_kernels.ops._triton.strides import far
from griffin_kernels.ops.local_attention._triton_jit import (
    LOG2E,
    intact,
    load_keys,
    load_rows,
    report,
    row_offsets,
    sight,
    span,
)
from griffin_kernels.ops.local_attention_bwd._triton_jit import (
    queries_of_keys,
    through_keys,
    through_queries,
    unsound_upstream,
)


@triton.jit(do_not_specialize=["T", "batches"])
def local_attention_bwd_delta(
    dout,
    out,
    lse,
    delta,
    powers,
    T,
    batches,
    dout_batch,
    out_batch,
    lse_batch,
    lse_head,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    DOUT_STEP,
    DOUT_HEAD,
    DOUT_CHANNEL: tl.constexpr,
    OUT_STEP,
    OUT_HEAD,
    OUT_CHANNEL: tl.constexpr,
    LSE_STEP,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta = dout . out and powers = lse log2(e), float32 [B,Hkv,T*G]. dout, out: [B,T,Hq,D]; lse: [B,Hq,T].

    Grid: tiles of [T * G] * B * Hkv.
    """
    lane = tl.program_id(0) % (batches * HKV)
    row = tl.program_id(0) // (batches * HKV) * BLOCK_M
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    rows = row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    origin = row // G
    begin = tl.cast(origin, tl.int64)
    dout += batch * dout_batch + shared * (G * far(DOUT_HEAD)) + begin * far(DOUT_STEP)
    out += batch * out_batch + shared * (G * far(OUT_HEAD)) + begin * far(OUT_STEP)
    upstream = load_rows(
        dout, rows, origin, columns, T, G, far(DOUT_STEP), far(DOUT_HEAD), DOUT_CHANNEL, D, BLOCK_M, BLOCK_D
    )
    result = load_rows(out, rows, origin, columns, T, G, far(OUT_STEP), far(OUT_HEAD), OUT_CHANNEL, D, BLOCK_M, BLOCK_D)
    there = rows < T * G
    head = shared * G + rows % G
    power = tl.load(lse + batch * lse_batch + head * lse_head + (rows // G).to(tl.int64) * far(LSE_STEP), mask=there)
    where = (batch * HKV + shared) * T * G + rows
    tl.store(delta + where, tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1), mask=there)
    tl.store(powers + where, power * LOG2E, mask=there)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_queries(
    dout,
    q,
    k,
    v,
    first,
    delta,
    powers,
    dq,
    broken,
    T,
    S,
    window,
    batches,
    factor,
    softcap,
    scale,
    dout_batch,
    q_batch,
    k_batch,
    v_batch,
    first_batch,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    DOUT_STEP,
    DOUT_HEAD,
    DOUT_CHANNEL: tl.constexpr,
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
    """dq [B,T,Hq,D]. Grid: tiles of [T * G] * B * Hkv, the last tiles first, as they see most keys."""
    if AGAIN:
        if intact(broken, BLOCK_M):
            return
    lane = tl.program_id(0) % (batches * HKV)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) // (batches * HKV) * BLOCK_M
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    rows = row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    origin = row // G
    begin = tl.cast(origin, tl.int64)
    there = rows < T * G
    if first is not None:
        first += batch * first_batch
    own, reach = sight(first, rows, T, S, window, G)
    low, full_low, full_high, high = span(first, reach, row, T, S, window, G, BLOCK_M)
    dout += batch * dout_batch + shared * (G * far(DOUT_HEAD)) + begin * far(DOUT_STEP)
    q += batch * q_batch + shared * (G * far(Q_HEAD)) + begin * far(Q_STEP)
    upstream = load_rows(
        dout, rows, origin, columns, T, G, far(DOUT_STEP), far(DOUT_HEAD), DOUT_CHANNEL, D, BLOCK_M, BLOCK_D
    )
    queries = load_rows(q, rows, origin, columns, T, G, far(Q_STEP), far(Q_HEAD), Q_CHANNEL, D, BLOCK_M, BLOCK_D)
    if NEGATIVE:
        queries = -queries
    where = (batch * HKV + shared) * T * G + rows
    summed = through_queries(
        queries,
        upstream,
        tl.load(powers + where, mask=there, other=0.0),
        tl.load(delta + where, mask=there, other=0.0),
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
    DQ_STEP: tl.constexpr = HKV * G * D
    dq += (batch * T + origin) * DQ_STEP + shared * (G * D)
    inside = there[:, None]
    if D != BLOCK_D:
        inside = inside & (columns[None, :] < D)
    places = row_offsets(rows, origin, columns, T, G, DQ_STEP, D, 1, D, BLOCK_M)
    tl.store(dq + places, (summed * scale).to(dq.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "S", "window", "batches"])
def local_attention_bwd_keys(
    dout,
    q,
    k,
    v,
    first,
    delta,
    powers,
    dk,
    dv,
    broken,
    T,
    S,
    window,
    batches,
    factor,
    softcap,
    scale,
    dout_batch,
    q_batch,
    k_batch,
    v_batch,
    first_batch,
    G: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    DOUT_STEP,
    DOUT_HEAD,
    DOUT_CHANNEL: tl.constexpr,
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
    """dk, dv [PARTS,B,S,Hkv,D]: every part has the sum over its share of the rows that see a tile of keys.

    Grid: tiles of [S] * PARTS * B * Hkv.
    """
    if AGAIN:
        if intact(broken, BLOCK_N):
            return
    lane = tl.program_id(0) % (batches * HKV)
    part = tl.program_id(0) // (batches * HKV) % PARTS
    start = tl.program_id(0) // (batches * HKV * PARTS) * BLOCK_N
    batch = tl.cast(lane // HKV, tl.int64)
    shared = tl.cast(lane % HKV, tl.int64)
    begin = tl.cast(start, tl.int64)
    columns = tl.arange(0, BLOCK_D)
    ahead = tl.arange(0, BLOCK_N)
    if first is not None:
        first += batch * first_batch
    low, full_low, full_high, high = queries_of_keys(first, start, T, S, window, BLOCK_N, 256)
    low = low * G
    high = high * G
    if PARTS > 1:
        share = tl.cdiv(tl.maximum(high - low, 0), PARTS * BLOCK_M) * BLOCK_M
        low += part * share
        high = tl.minimum(high, low + share)
    k += batch * k_batch + shared * far(K_HEAD) + begin * far(K_STEP)
    v += batch * v_batch + shared * far(V_HEAD) + begin * far(V_STEP)
    keys = load_keys(k, ahead, S - start, columns, far(K_STEP), K_CHANNEL, D, BLOCK_N, BLOCK_D)
    values = load_keys(v, ahead, S - start, columns, far(V_STEP), V_CHANNEL, D, BLOCK_N, BLOCK_D)
    if NEGATIVE:
        keys = -keys
    lane_rows = (batch * HKV + shared) * T * G
    to_keys, to_values = through_keys(
        keys,
        values,
        start + ahead,
        q + batch * q_batch + shared * (G * far(Q_HEAD)),
        dout + batch * dout_batch + shared * (G * far(DOUT_HEAD)),
        powers + lane_rows,
        delta + lane_rows,
        first,
        low,
        full_low * G,
        full_high * G,
        high,
        T,
        S,
        window,
        factor,
        softcap,
        G=G,
        Q_STEP=far(Q_STEP),
        Q_HEAD=far(Q_HEAD),
        Q_CHANNEL=Q_CHANNEL,
        DOUT_STEP=far(DOUT_STEP),
        DOUT_HEAD=far(DOUT_HEAD),
        DOUT_CHANNEL=DOUT_CHANNEL,
        D=D,
        CAPPED=CAPPED,
        AGAIN=AGAIN,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
    )
    if not AGAIN:
        report(broken, to_keys + to_values, BLOCK_N)
    inside = (start + ahead < S)[:, None]
    if D != BLOCK_D:
        inside = inside & (columns[None, :] < D)
    base = (((part * tl.cast(batches, tl.int64) + batch) * S + begin) * HKV + shared) * D
    places = base + ahead[:, None] * (HKV * D) + columns[None, :]
    tl.store(dk + places, (to_keys * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + places, to_values.to(dv.dtype.element_ty), mask=inside)
    if AGAIN:
        upstream = dout + batch * dout_batch + shared * (G * far(DOUT_HEAD))
        unsound = unsound_upstream(
            start + ahead,
            upstream,
            first,
            low,
            high,
            T,
            S,
            window,
            G,
            far(DOUT_STEP),
            far(DOUT_HEAD),
            DOUT_CHANNEL,
            D,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
        )
        tl.store(dv + places, float("nan"), mask=inside & unsound)


@triton.jit
def local_attention_bwd_join(dk_parts, dv_parts, dk, dv, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """dk, dv [count]: sums of dk_parts, dv_parts [PARTS, count], in that order. Grid: ceil(count / block)."""
    offset = tl.cast(tl.program_id(0), tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    inside = offset + places < count
    to_keys = tl.zeros((BLOCK,), dtype=tl.float32)
    to_values = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        base = offset + part * tl.cast(count, tl.int64)
        to_keys += tl.load(dk_parts + base + places, mask=inside, other=0.0)
        to_values += tl.load(dv_parts + base + places, mask=inside, other=0.0)
    tl.store(dk + offset + places, to_keys.to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + offset + places, to_values.to(dv.dtype.element_ty), mask=inside)
