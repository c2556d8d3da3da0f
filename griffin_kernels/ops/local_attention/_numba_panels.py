"""Keys and values as numba.tiled reads them: panels of PANEL columns; pairs where bfloat16 is multiplied in pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops._buffers import address
from griffin_kernels.ops.local_attention._numba_attention import whole
from griffin_kernels.ops.local_attention._numba_products import PANEL


def _by_head(keys: Tensor, rows: int, columns: int) -> Tensor:
    """[B,S,Hkv,d] -> [B * Hkv, rows, columns], zeros beyond S and d."""
    batch, count, shared, d = keys.shape
    padded = keys.new_zeros(batch, shared, rows, columns)
    padded[:, :, :count, :d] = keys.transpose(1, 2)
    return padded.view(-1, rows, columns)


def across(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of keys, d down: [B * Hkv, S / PANEL, d, PANEL], pairs along d."""
    pair = 2 if pairs else 1
    rows, columns = whole(keys.shape[1], PANEL), whole(keys.shape[3], pair)
    tiles = _by_head(keys, rows, columns).view(-1, rows // PANEL, PANEL, columns // pair, pair)
    return tiles.transpose(2, 3).contiguous()


def down(keys: Tensor, pairs: bool) -> Tensor:
    """[B,S,Hkv,d] -> panels of d, keys down: [B * Hkv, d / PANEL, S, PANEL], pairs along keys."""
    pair = 2 if pairs else 1
    rows, columns = whole(keys.shape[1], PANEL), whole(keys.shape[3], PANEL)
    tiles = _by_head(keys, rows, columns).view(-1, rows // pair, pair, columns // PANEL, PANEL)
    return tiles.permute(0, 3, 1, 4, 2).contiguous()


def laid_out(call: Any, gradient: bool) -> tuple[Any, dict[str, Any]]:
    """Panels of a call's keys and values, and their fields; the gradient's are float32."""
    (batch, keys, shared, d), pairs = call.k.shape, call.q.dtype == torch.bfloat16 and not gradient
    k, v = (call.k.float(), call.v.float()) if gradient else (call.k, call.v)
    kept = [across(k, pairs), across(v, pairs) if gradient else down(v, pairs)]
    each = (2 if pairs else 4) * batch * shared * whole(keys, PANEL)  # bytes of a column
    size, other = each * whole(d, 2 if pairs else 1), each * whole(d, PANEL)
    fields: dict[str, Any] = {
        "k": (address("k", kept[0], size), 0, 0, 0),
        "v": (address("v", kept[1], size if gradient else other), 0, 0, 0),
    }
    if gradient:
        kept.append(down(k, False))
        fields["k_down"] = address("k", kept[2], other)
    return kept, fields
