"""Calls the compiled kernels of _numba_tiles.py: panels, scratch, addresses. Shared by the op and its gradient."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._buffers import address
from griffin_kernels.ops.local_attention import _numba_tiles
from griffin_kernels.ops.local_attention._numba_call import LOG2_E, block_of, part_of, placed, rows_of
from griffin_kernels.ops.local_attention._numba_products import PANEL, ROWS
from griffin_kernels.ops.local_attention._numba_rows import LANES
from griffin_kernels.ops.local_attention.op import first_keys, within_reach

_REST = {name: 0 for name in _numba_tiles.FIELDS}


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _by_head(keys: Tensor, rows: int, columns: int) -> Tensor:
    """[B,S,Hkv,d] -> [B * Hkv, rows, columns], zeros beyond S and d."""
    batch, count, shared, d = keys.shape
    padded = keys.new_zeros(batch, shared, rows, columns)
    padded[:, :, :count, :d] = keys.transpose(1, 2)
    return padded.view(-1, rows, columns)


def across(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of keys, d down: [B * Hkv, S / PANEL, d, PANEL], pairs along d."""
    pair = 2 if pairs else 1
    rows, columns = _whole(keys.shape[1], PANEL), _whole(keys.shape[3], pair)
    tiles = _by_head(keys, rows, columns).view(-1, rows // PANEL, PANEL, columns // pair, pair)
    return tiles.transpose(2, 3).contiguous()


def down(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of d, keys down: [B * Hkv, d / PANEL, S, PANEL], pairs along keys."""
    pair = 2 if pairs else 1
    rows, columns = _whole(keys.shape[1], PANEL), _whole(keys.shape[3], PANEL)
    tiles = _by_head(keys, rows, columns).view(-1, rows // pair, pair, columns // PANEL, PANEL)
    return tiles.permute(0, 3, 1, 4, 2).contiguous()


def panels(rows: int, count: int, d: int, pairs: bool, **tensors: Tensor) -> dict[str, int]:
    """Addresses of panels of ``count`` keys by name: ``across`` and ``down`` make them."""
    size, pair = (2, 2) if pairs else (4, 1)  # bytes of an element
    columns = {"across": _whole(d, pair), "down": _whole(d, PANEL)}
    each = size * rows * _whole(count, PANEL)
    return {name: address(name, tensor, each * columns[name.split("_")[1]]) for name, tensor in tensors.items()}


def _run(
    kernel: Callable[[Any], None],
    q: Tensor,
    count_keys: int,
    shared: int,
    out: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    tile: int,
    block: int,
    piece: int,
    row: int,
    fields: dict[str, int],
) -> None:
    """Run a kernel. piece: queries of an item. row: float32 numbers in scratch for a block's row, but for its scores.

    fields: what only one of the kernels has, and panels.
    """
    batch, time, heads, d = q.shape
    group, pieces = heads // shared, -(-time // piece)
    first = first_keys(time, count_keys, window, segment_pos, cu_seqlens, q.device).contiguous()
    items, tile = batch * shared * pieces, _whole(min(tile, count_keys), PANEL)
    pitch = _whole(tile, LANES) + LANES
    threads = _threads.threads_for(items, batch * heads * time * min(window, count_keys) * d // 8)
    place = _whole(_whole(block * group, ROWS) * (2 * pitch + row), 16)
    scratch = memory.empty((threads, place), torch.float32)
    factor = d**-0.5 if scale is None else scale
    of_rows = LOG2_E if softcap is None else 2 * LOG2_E / softcap
    factors = array("f", (factor * of_rows, (softcap or 0.0) * LOG2_E, factor))
    sizes = {"items": items, "pieces": pieces, "block": block, "time": time, "keys": count_keys}
    sizes |= {"padded": _whole(count_keys, PANEL), "shared": shared, "group": group, "d": d}
    sizes |= {"wide": _whole(d, PANEL), "tile": tile, "pitch": pitch, "window": window}
    others = {
        "first": address("first keys", first, 8 * first.shape[0] * time),
        "first_batch": time if first.shape[0] > 1 else 0,
        "scratch": address("scratch", scratch, 4 * threads * place),
        "scratch_place": place,
        "factors": factors.buffer_info()[0],
        "capped": int(softcap is not None),
    }
    places = placed("q", q, q.nbytes) | placed("out", out, q.nbytes)
    values = array("q", (_REST | sizes | places | others | fields).values())
    _threads.run(_native.compiled(kernel, q.dtype, _numba_tiles.FILES), values.buffer_info()[0], threads)


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
    q, k, v = rows_of(q), within_reach(k, time, window), within_reach(v, time, window)
    out = memory.empty(q.shape, q.dtype)
    lse = torch.empty(batch, heads, time, dtype=torch.float32, device="cpu") if with_lse else None
    block = block_of(batch, time, heads, k.shape[2], rows)
    pairs = q.dtype == torch.bfloat16
    k_across, v_down = across(k, pairs), down(v, pairs)
    options = (segment_pos, cu_seqlens, window, softcap, scale)
    fields = {"lse": address("lse", lse, 4 * batch * heads * time)}
    fields |= panels(batch * k.shape[2], k.shape[1], d, pairs, k_across=k_across, v_down=v_down)
    row = _whole(d, PANEL) + d + 3
    _run(_numba_tiles.attend, q, k.shape[1], k.shape[2], out, *options, tile, block, block, row, fields)
    return out, lse


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
    shared, wide = k.shape[2], _whole(d, PANEL)
    q, out, dout, lse = rows_of(q), rows_of(out), rows_of(dout), lse.contiguous()
    near_k, near_v = within_reach(k, time, window).float(), within_reach(v, time, window).float()
    count_keys = near_k.shape[1]
    dq = memory.empty(q.shape, q.dtype)
    block = block_of(batch, time, heads, shared, rows)
    piece = part_of(time, window, block, part)
    reach, pieces = _whole(min(count_keys, piece + window - 1) + PANEL - 1, PANEL), -(-time // piece)
    shares = memory.empty((2, batch, shared, pieces, reach, wide), torch.float32)
    k_across, k_down, v_across = across(near_k, False), down(near_k, False), across(near_v, False)
    options = (segment_pos, cu_seqlens, window, softcap, scale)
    fields = placed("dout", dout, q.nbytes) | {"part": piece, "reach": reach}
    fields |= panels(batch * shared, count_keys, d, False, k_across=k_across, k_down=k_down, v_across=v_across)
    fields |= {
        "lse": address("lse", lse, 4 * batch * heads * time),
        "dq": address("dq", dq, q.nbytes),
        "dk": address("dk", shares[0], 4 * shares[0].numel()),
        "dv": address("dv", shares[1], 4 * shares[0].numel()),
    }
    row = 3 * wide + 2 * 16 + 2
    _run(_numba_tiles.gradient, q, count_keys, shared, out, *options, tile, block, piece, row, fields)

    def joined(share: Tensor, like: Tensor, factor: float) -> Tensor:
        """[B, Hkv, pieces, reach, wide] -> factor times the gradient of ``like`` [B,S,Hkv,d]; zeros out of reach."""
        summed = torch.zeros(batch, like.shape[1], shared, d, dtype=torch.float32, device="cpu")
        near = summed[:, like.shape[1] - count_keys :].transpose(1, 2)
        for index in range(pieces):
            base = max(0, count_keys - time + index * piece - (window - 1)) // PANEL * PANEL
            length = min(reach, count_keys - base)
            near[:, :, base : base + length].add_(share[:, :, index, :length, :d], alpha=factor)
        return summed.to(like.dtype)

    # queries were scaled for their scores
    of_dk = 1 / LOG2_E if softcap is None else softcap / (2 * LOG2_E)
    return dq, joined(shares[0], k, of_dk), joined(shares[1], v, 1.0)
