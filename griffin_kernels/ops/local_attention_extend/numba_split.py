"""Native code that reads each visible key once where it lies: keys in parts, softmax per part, then joined.

Part j leaves m_j = max s, t_j = sum exp(s - m_j) and o_j = sum exp(s - m_j) v; with m = max m_j

    out = sum_j exp(m_j - m) o_j / sum_j exp(m_j - m) t_j

All T tokens and heads of a key head are scored against a key while it is in the first-level cache. Slots of positions
that no token sees are not read. For the few tokens of a verification: parts of many tokens do not fit a cache.
Source: the split of decoding over keys in Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant, ordinary
from griffin_kernels.device import Device
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops.local_attention._numba_attention import placed, whole
from griffin_kernels.ops.local_attention.op import scale_of
from griffin_kernels.ops.local_attention_extend import _numba_ring_tokens, _ring_keys
from griffin_kernels.ops.local_attention_extend._numba_ring_tokens import KEYS
from griffin_kernels.ops.local_attention_extend.op import Call, real, ring_of, rows_of
from griffin_kernels.ops.local_attention_step import numba_split

MOST_ROWS = 512
"""Tokens times query heads of a key head whose sums a second-level cache holds."""

_KERNELS = native.Family(_numba_ring_tokens.Fields, _numba_ring_tokens.FILES)


class Config(numba_split.Config):
    """part: keys of one work item, as in local_attention_step."""


def run(call: Call, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, k_cache, v_cache, positions, _, lengths, table, window, softcap, *_ = call
    batch, time, heads, d = q.shape
    size, shared = k_cache.shape[1:3]
    group = heads // shared
    rows, part = time * group, whole(min(config.part, window - 1 + time), KEYS)
    parts = -(-(window - 1 + time) // part)
    items = batch * shared * parts
    there = real(call)
    rings_k, rings_v = k_cache, v_cache
    if d > 1 and (k_cache.stride(3) != 1 or v_cache.stride(3) != 1):
        # all rings are copied only where their channels are not contiguous; the copies then hold the new tokens already
        _ring_keys.put(call, there)
        rings_k, rings_v = k_cache.contiguous(), v_cache.contiguous()
    new_k, new_v = k.contiguous(), v.contiguous()
    slots = rows_of(call)
    slots = None if slots is None else slots.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    table = None if table is None else table.contiguous()
    pages = 0 if table is None else table.shape[1]
    by_key_head = (q.float() * scale_of(call)).reshape(batch, time, shared, group, d).transpose(1, 2)
    queries, positions = by_key_head.contiguous(), positions.contiguous()
    partial = torch.empty(items, rows, d, dtype=torch.float32, device="cpu")
    largest, total = torch.empty(2, items, rows, dtype=torch.float32, device="cpu")
    scratch = torch.empty(items, (rows + 1) * part + KEYS * d, dtype=torch.float32, device="cpu")
    cap = array("f", (softcap or 0.0,))
    item, ring_bytes = q.itemsize, k_cache.nbytes
    fields = _KERNELS.fields(
        k=placed("k_cache", rings_k, ring_bytes),
        v=placed("v_cache", rings_v, ring_bytes),
        items=items,
        parts=parts,
        part=part,
        window=window,
        ring=ring_of(call),
        table=address("block_table", table, 8 * batch * pages),
        pages=pages,
        size=size,
        time=time,
        shared=shared,
        group=group,
        d=d,
        positions=address("positions", positions, 8 * batch),
        lengths=address("lengths", lengths, 8 * batch),
        rings=address("slots", slots, 8 * batch),
        q=address("q", queries, 4 * batch * heads * time * d),
        k_new=address("k", new_k, item * batch * time * shared * d),
        v_new=address("v", new_v, item * batch * time * shared * d),
        out=address("partial sums", partial, 4 * items * rows * d),
        largest=address("largest scores", largest, 4 * items * rows),
        total=address("sums", total, 4 * items * rows),
        scratch=address("scratch", scratch, 4 * items * ((rows + 1) * part + KEYS * d)),
        capped=softcap is not None,
        softcap=cap.buffer_info()[0],
    )
    threads = _threads.threads_for(items, 2 * items * part * d)
    _KERNELS.run(q.dtype, None, fields, (_numba_ring_tokens.attend, threads))
    largest, total = (tensor.view(-1, parts, rows) for tensor in (largest, total))
    share = torch.exp(largest - largest.amax(1, keepdim=True))  # [B * Hkv, parts, T * G]
    summed = (partial.view(-1, parts, rows, d) * share[..., None]).sum(1)
    out = (summed / (share * total).sum(1)[..., None]).view(batch, shared, time, group, d).transpose(1, 2)
    out = out.to(q.dtype).reshape(q.shape)
    if slots is not None or lengths is not None:
        out = out.masked_fill(~there[..., None, None], 0.0)
    return ordinary(out), k_cache, v_cache


def reject(case: Case, device: Device, config: Config) -> str | None:
    """What local_attention_step refuses, and tokens too many."""
    if reason := numba_split.reject(case, device, config):
        return reason
    if (rows := case["T"] * (case["Hq"] // case["Hkv"])) > MOST_ROWS:
        return f"{rows} tokens times heads of a key head are more than the {MOST_ROWS} whose sums a cache holds"
    return None


VARIANT = Variant(
    op="local_attention_extend",
    name="numba.split",
    summary="native code, keys in parts where they lie, every visible key read once",
    run=run,
    config=Config,
    axes={"part": (64, 128, 256, 512, 1024)},
    reject=reject,
    rank=lambda case, device: 20,
)
