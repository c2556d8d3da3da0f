"""Calls the compiled kernels of _numba.py: layouts, scratch, addresses, threads. Shared by the op and its gradient."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops import _blas, _native, _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.local_attention import _numba
from griffin_kernels.ops.local_attention._numba_rows import LANES
from griffin_kernels.ops.local_attention.op import first_keys, within_reach

LOG2_E = math.log2(math.e)
_MOST_STEP = 2**31 - 1
"""BLAS counts in 32 bits."""
_ITEMS = 4
"""Work items, at least, if there are as many queries: so that a few long rows still have work for several threads."""
_REST = {name: 0 for name in _numba.FIELDS}


def _keys(keys: Tensor) -> Tensor:
    """Keys [B,S,Hkv,d] as BLAS reads them: float32, channels contiguous, rows apart."""
    keys = keys.float().resolve_neg()
    d = keys.shape[3]
    if (keys.stride(3) == 1 or d == 1) and d <= keys.stride(1) <= _MOST_STEP:
        return keys
    return keys.contiguous()


def rows_of(tensor: Tensor) -> Tensor:
    """Rows [B,T,Hq,d] that the kernels read element by element: contiguous channels, float16 as float32."""
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def placed(name: str, tensor: Tensor, size: int) -> dict[str, int]:
    """The fields of a tensor [B,T,H,d] whose elements take ``size`` bytes."""
    at, batch, time = strided(name, tensor, size)
    return {name: at, f"{name}_batch": batch, f"{name}_time": time, f"{name}_head": tensor.stride(2)}


def _pitch(tile: int) -> int:
    """From one row of scores to the next: ``tile`` rounded up as _numba_rows.py wants it, and no multiple of a page."""
    return -(-tile // LANES) * LANES + 16


def block_of(batch: int, time: int, heads: int, shared: int, rows: int) -> int:
    """Queries in a block of ``rows`` queries times heads of a key head."""
    return max(1, min(rows // (heads // shared), -(-batch * shared * time // _ITEMS)))


def part_of(time: int, window: int, block: int, part: int) -> int:
    """Queries whose share of dk and dv is summed apart: a fourth of the window or more, or shares are mostly zeros."""
    wanted = min(max(part, min(window, time) // 4), time)
    return max(1, -(-wanted // block)) * block


def _run(
    kernel: Callable[[Any], None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    tile: int,
    block: int,
    piece: int,
    numbers: int,
    fields: dict[str, int],
) -> None:
    """Run a kernel. piece: queries of an item. numbers: of float32 in scratch for a block's row, but for its scores.

    fields: what only one of the kernels has.
    """
    batch, time, heads, d = q.shape
    count_keys, shared = k.shape[1], k.shape[2]
    group, pieces = heads // shared, -(-time // piece)
    first = first_keys(time, count_keys, window, segment_pos, cu_seqlens, q.device).contiguous()
    items, pitch = batch * shared * pieces, _pitch(min(tile, count_keys))
    threads = _threads.threads_for(items, batch * heads * time * min(window, count_keys) * d // 8)
    tensors = 2 if "dout" in fields else 1
    place = block * group * (tensors * pitch + numbers)
    scratch = memory.empty((threads, place), torch.float32)
    factor = d**-0.5 if scale is None else scale
    of_rows, of_dk = (LOG2_E, 1 / LOG2_E) if softcap is None else (2 * LOG2_E / softcap, softcap / (2 * LOG2_E))
    factors = array("f", (factor * of_rows, (softcap or 0.0) * LOG2_E, factor, of_dk))
    blas = _blas.found()
    assert blas is not None, "reject() lets no call come here without it"
    sizes = {"items": items, "pieces": pieces, "block": block, "time": time, "keys": count_keys, "shared": shared}
    sizes |= {"group": group, "d": d, "tile": min(tile, count_keys), "pitch": pitch, "window": window}
    of_keys = 4 * batch * count_keys * shared * d
    places = placed("q", q, q.nbytes) | placed("k", k, of_keys) | placed("v", v, of_keys) | placed("out", out, q.nbytes)
    others = {
        "first": address("first keys", first, 8 * first.shape[0] * time),
        "first_batch": time if first.shape[0] > 1 else 0,
        "scratch": address("scratch", scratch, 4 * threads * place),
        "scratch_place": place,
        "factors": factors.buffer_info()[0],
        "capped": int(softcap is not None),
        "sgemm": blas.sgemm,
        "set_threads": blas.set_threads,
    }
    values = array("q", (_REST | sizes | places | others | fields).values())
    _threads.run(_native.compiled(kernel, q.dtype, _numba.FILES), values.buffer_info()[0], threads)


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
    q, k, v = rows_of(q), _keys(within_reach(k, time, window)), _keys(within_reach(v, time, window))
    out = memory.empty(q.shape, q.dtype)
    lse = torch.empty(batch, heads, time, dtype=torch.float32, device="cpu") if with_lse else None
    block = block_of(batch, time, heads, k.shape[2], rows)
    options = (segment_pos, cu_seqlens, window, softcap, scale)
    fields = {"lse": address("lse", lse, 4 * batch * heads * time)}
    _run(_numba.attend, q, k, v, out, *options, tile, block, block, 2 * d + 2, fields)
    return out.to(dtype), lse


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    rows: int,
    tile: int,
    part: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """local_attention_bwd likewise; dk and dv of ``part`` queries or more are summed apart, then joined in order."""
    batch, time, heads, d = q.shape
    shared, dtype = k.shape[2], q.dtype
    q, out, dout, lse = rows_of(q), rows_of(out), rows_of(dout), lse.contiguous()
    near_k, near_v = _keys(within_reach(k, time, window)), _keys(within_reach(v, time, window))
    count_keys = near_k.shape[1]
    dq = memory.empty(q.shape, q.dtype)
    block = block_of(batch, time, heads, shared, rows)
    piece = part_of(time, window, block, part)
    reach, pieces = min(count_keys, piece + window - 1), -(-time // piece)
    shares = memory.empty((2, batch, shared, pieces, reach, d), torch.float32)
    options = (segment_pos, cu_seqlens, window, softcap, scale)
    share = batch * shared * pieces * reach * d
    addresses = {
        "lse": address("lse", lse, 4 * batch * heads * time),
        "dq": address("dq", dq, q.nbytes),
        "dk": address("dk", shares[0], 4 * share),
        "dv": address("dv", shares[1], 4 * share),
    }
    more = addresses | placed("dout", dout, q.nbytes) | {"part": piece, "reach": reach}
    _run(_numba.gradient, q, near_k, near_v, out, *options, tile, block, piece, 3 * d + 2, more)

    def joined(share: Tensor, like: Tensor) -> Tensor:
        """[B, Hkv, pieces, reach, d] -> the gradient of ``like`` [B,S,Hkv,d]; zeros out of reach."""
        summed = torch.zeros(batch, like.shape[1], shared, d, dtype=torch.float32, device="cpu")
        near = summed[:, like.shape[1] - count_keys :].transpose(1, 2)
        for index in range(pieces):
            base = max(0, count_keys - time + index * piece - (window - 1))
            length = min(reach, count_keys - base)
            near[:, :, base : base + length] += share[:, :, index, :length]
        return summed.to(like.dtype)

    return dq.to(dtype), joined(shares[0], k), joined(shares[1], v)
