"""Calls the compiled kernels of _numba.py: layouts, scratch, addresses, threads. Shared by the op and its gradient."""

from __future__ import annotations

import math
from array import array

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops import _blas, _threads
from griffin_kernels.ops.local_attention import _numba
from griffin_kernels.ops.local_attention.op import first_keys, within_reach

_LOG2_E = math.log2(math.e)
_MOST_STEP = 2**31 - 1
"""BLAS counts in 32 bits."""
_ITEMS = 4
"""Work items, at least, if there are as many queries: so that a few long rows still have work for several threads."""


def _rows(keys: Tensor) -> Tensor:
    """Keys [B,S,Hkv,d] as BLAS reads them: float32, channels contiguous, rows apart."""
    keys = keys.float().resolve_neg()
    d = keys.shape[3]
    if (keys.stride(3) == 1 or d == 1) and d <= keys.stride(1) <= _MOST_STEP:
        return keys
    return keys.contiguous()


def _queries(tensor: Tensor) -> Tensor:
    """Rows that the kernels read element by element: contiguous channels, float16 as float32."""
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _padded(count: int) -> int:
    """``count`` scores, rounded up as _numba.py wants it, and not a multiple of a page."""
    return -(-count // _numba.LANES) * _numba.LANES + 16


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    with_lse: bool,
    rows: int,
    tile: int,
) -> tuple[Tensor, Tensor | None]:
    """local_attention by blocks of ``rows`` queries times heads and tiles of ``tile`` keys."""
    batch, time, heads, d = q.shape
    dtype = q.dtype
    q, k, v = _queries(q), _rows(within_reach(k, time, window)), _rows(within_reach(v, time, window))
    count_keys, shared = k.shape[1], k.shape[2]
    group = heads // shared
    first = first_keys(time, count_keys, window, segment_pos, cu_seqlens, q.device).contiguous()
    out = memory.empty(q.shape, q.dtype)
    lse = torch.empty(batch, heads, time) if with_lse else None
    block = max(1, min(rows // group, -(-batch * shared * time // _ITEMS)))
    blocks = -(-time // block)
    items = batch * shared * blocks
    tile = min(tile, count_keys)
    pitch = _padded(tile)
    pairs = batch * heads * time * min(window, count_keys)
    threads = _threads.threads_for(items, pairs * d // 8)
    place = block * group * (2 * d + pitch + 2)
    scratch = memory.empty((threads, place), torch.float32)
    factor = (d**-0.5 if scale is None else scale) * _LOG2_E
    factors = array("f", (factor if softcap is None else 2 * factor / softcap, (softcap or 0.0) * _LOG2_E))
    blas = _blas.found()
    assert blas is not None, "reject() lets no call come here without it"
    # in the order of _numba.FIELDS
    values = (
        0,
        0,
        items,
        blocks,
        block,
        time,
        count_keys,
        shared,
        group,
        d,
        tile,
        pitch,
        first.data_ptr(),
        time if first.shape[0] > 1 else 0,
        q.data_ptr(),
        *q.stride()[:3],
        k.data_ptr(),
        *k.stride()[:3],
        v.data_ptr(),
        *v.stride()[:3],
        out.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        scratch.data_ptr(),
        place,
        factors.buffer_info()[0],
        softcap is not None,
        blas.sgemm,
        blas.set_threads,
    )
    fields = array("q", values)
    _threads.run(_numba.compiled(_numba.attend, q.dtype), fields.buffer_info()[0], threads)
    return out.to(dtype), lse
