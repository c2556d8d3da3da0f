"""Native code that reads each visible slot once: the ring in parts, a thread to each, softmax per part, then joined.

Part j leaves m_j = max s, t_j = sum exp(s - m_j) and o_j = sum exp(s - m_j) v; with m = max m_j

    out = sum_j exp(m_j - m) o_j / sum_j exp(m_j - m) t_j

All heads of a key head are scored against a row while it is in the first-level cache. Slots not yet written are not
read. The part that the new token's slot belongs to writes it first; no other part reads that slot.
Source: the split of decoding over keys in Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant, ordinary
from griffin_kernels.device import Device
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _slots, _threads
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.local_attention._numba_attention import placed
from griffin_kernels.ops.local_attention.op import scale_of
from griffin_kernels.ops.local_attention_step import _numba_ring, _ring
from griffin_kernels.ops.local_attention_step.op import Call

_KERNELS = native.Family(_numba_ring.Fields, _numba_ring.FILES)


@dataclass(frozen=True)
class Config:
    """part: slots of one work item; longer ones are fewer to join, shorter ones are shared out more evenly."""

    part: int = 256


def run(call: Call, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, k_cache, v_cache, positions, _, softcap, *_ = call
    slots, _ = _slots.of(call, k_cache.shape[0])
    batch, heads, d = q.shape
    window, shared = k_cache.shape[1:3]
    group, part = heads // shared, min(config.part, window)
    parts = -(-window // part)
    items = batch * shared * parts
    rings_k, rings_v = k_cache, v_cache
    if d > 1 and (k_cache.stride(3) != 1 or v_cache.stride(3) != 1):
        # all rings are copied only where their channels are not contiguous; the copies then hold the new token already
        _ring.put(call)
        rings_k, rings_v = k_cache.contiguous(), v_cache.contiguous()
    new_k, new_v = k.contiguous(), v.contiguous()
    slots = None if slots is None else slots.contiguous()
    queries = (q.float() * scale_of(call)).contiguous()
    positions = positions.contiguous()
    partial = torch.empty(items, group, d, dtype=torch.float32, device="cpu")
    largest, total = torch.empty(2, items, group, dtype=torch.float32, device="cpu")
    scratch = torch.empty(items, (group + 1) * part + 4 * d, dtype=torch.float32, device="cpu")
    cap = array("f", (softcap or 0.0,))
    size, ring_bytes = q.itemsize, k_cache.nbytes
    fields = _KERNELS.fields(
        k=placed("k_cache", rings_k, ring_bytes),
        v=placed("v_cache", rings_v, ring_bytes),
        items=items,
        parts=parts,
        part=part,
        window=window,
        shared=shared,
        group=group,
        d=d,
        positions=address("positions", positions, 8 * batch),
        q=address("q", queries, 4 * batch * heads * d),
        out=address("partial sums", partial, 4 * items * group * d),
        largest=address("largest scores", largest, 4 * items * group),
        total=address("sums", total, 4 * items * group),
        scratch=address("scratch", scratch, 4 * items * ((group + 1) * part + 4 * d)),
        capped=softcap is not None,
        softcap=cap.buffer_info()[0],
        rings=address("slots", slots, 8 * batch),
        k_new=address("k", new_k, size * batch * shared * d),
        v_new=address("v", new_v, size * batch * shared * d),
    )
    threads = _threads.threads_for(items, 2 * items * part * d)
    _KERNELS.run(q.dtype, None, fields, (_numba_ring.attend, threads))
    largest, total = (tensor.view(-1, parts, group) for tensor in (largest, total))
    share = torch.exp(largest - largest.amax(1, keepdim=True))  # [B * Hkv, parts, G]
    summed = (partial.view(-1, parts, group, d) * share[..., None]).sum(1)
    out = summed / (share * total).sum(1)[..., None]
    return ordinary(_slots.silence(out.view(batch, heads, d).to(q.dtype), slots)), k_cache, v_cache


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Float32 and bfloat16 on a CPU."""
    if reason := unfit_cpu(case, device, config):
        return reason
    if case.dtype not in ("float32", "bfloat16"):
        return f"has no {case.dtype} kernel, only float32 and bfloat16"
    return None


def rank(case: Case, device: Device) -> int:
    """Above eager.matmul, and above eager.sdpa_rows where heads are wide and reading outweighs the products."""
    return 20 if case["d"] >= 256 else 11


VARIANT = Variant(
    op="local_attention_step",
    name="numba.split",
    summary="native code, the ring in parts, every visible slot read once",
    run=run,
    config=Config,
    axes={"part": (64, 128, 256, 512, 1024)},
    reject=reject,
    rank=rank,
)
