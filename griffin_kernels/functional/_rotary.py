"""Rotary position embedding (arXiv 2104.09864): how heads are turned, in the models and in the calls that decode."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import accumulator, dtype_name
from griffin_kernels.functional._bridge import is_plain


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """x [..., d] with channels 0 .. 2 n - 1 turned in pairs; the result has its shape and dtype.

    cos, sin: [..., n], which broadcast with x's other dims. Channels i and i + n are a pair, as in GPT-NeoX;
    interleaved: channels 2 i and 2 i + 1, as in GPT-J. Products are float32, or float64 where x or cos is.
    """
    wide = torch.promote_types(accumulator(x.dtype), cos.dtype)
    cos, sin = cos.to(wide), sin.to(wide)
    turning = 2 * cos.shape[-1]
    if interleaved:
        left, right = x[..., 0:turning:2], x[..., 1:turning:2]
        turned = torch.stack([left * cos - right * sin, right * cos + left * sin], dim=-1).flatten(-2)
    else:
        left, right = x[..., : turning // 2], x[..., turning // 2 : turning]
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return torch.cat([turned.to(x.dtype), x[..., turning:]], dim=-1)


class NewTokens(NamedTuple):
    """What a call that decodes says of its new tokens; q, k [B, H, d] or [B, T, H, d], first positions [B]."""

    q: Any
    k: Any
    positions: Any
    slots: Tensor | None
    lengths: Tensor | None
    pad_slot: int

    @property
    def coherent(self) -> bool:
        """Whether the tensors go together at all; if not, the op says what is wrong."""
        q, k, *entries = self[:5]
        if not isinstance(q, Tensor):
            return False
        given = [entry for entry in (k, *entries) if entry is not None]
        if self.positions is None or not all([isinstance(t, Tensor) and t.device == q.device for t in given]):
            return False
        alike = k is not None and q.dim() in (3, 4) and q.is_floating_point() and k.dtype == q.dtype
        if not alike or k.shape[:-2] != q.shape[:-2] or k.shape[-1] != q.shape[-1]:
            return False
        return all([entry.shape == q.shape[:1] for entry in given[1:]])


def turned(op_name: str, tokens: NewTokens, rotary: Any, interleaved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q and k turned at their positions, and positions with 0 for rows that only pad. Waits for no device.

    Raises what is wrong with ``rotary``; on a CPU that includes tables which end before a real token's position.
    """
    q, k, positions, slots, lengths, pad_slot = tokens
    if not tokens.coherent:
        return q, k, positions
    cos, sin = _tables(op_name, q, rotary)
    pads = None if slots is None else (slots < 0) | (slots == pad_slot)
    if lengths is not None:
        pads = lengths <= 0 if pads is None else pads | (lengths <= 0)
    if pads is not None:
        positions = positions.masked_fill(pads, 0)
    index = positions
    if q.dim() == 4:
        index = positions[:, None] + torch.arange(q.shape[1], dtype=torch.int64, device=q.device)
    if cos.device.type == "cpu" and is_plain((cos, index)) and index.numel():
        last = index if q.dim() == 3 else index[:, -1] if lengths is None else positions + lengths - 1
        most = int((last if pads is None else last.masked_fill(pads, 0)).max())
        if most >= cos.shape[0]:
            raise errors.ArgumentError(f"{op_name}: positions has {most}, rotary only 0 to {cos.shape[0] - 1}")
    index = index.clamp(0, cos.shape[0] - 1)  # of tokens that only pad, and those that no GPU checks
    cos, sin = cos[index].unsqueeze(-2), sin[index].unsqueeze(-2)
    heads = rotate(torch.cat([q, k], dim=-2), cos, sin, interleaved)  # half the launches
    return heads[..., : q.shape[-2], :], heads[..., q.shape[-2] :, :], positions


def _tables(op_name: str, q: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, d_rot / 2] for heads like q's."""
    if not isinstance(rotary, (tuple, list)) or len(rotary) != 2 or not all(isinstance(t, Tensor) for t in rotary):
        raise errors.ArgumentError(f"{op_name}: rotary is no pair of tensors (cos, sin)")
    cos, sin = rotary
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dim() != 2 or table.shape != cos.shape or 2 * table.shape[1] > q.shape[-1] or not table.shape[0]:
            expected = f"expected [positions, d_rot / 2], the same for both, with d_rot of d={q.shape[-1]} at most"
            raise errors.ShapeError(f"{op_name}: rotary's {name} has shape {list(table.shape)}, {expected}")
        if table.dtype not in (q.dtype, torch.float32):
            allowed = " or ".join(dict.fromkeys((dtype_name(q.dtype), "float32")))
            raise errors.DtypeError(f"{op_name}: rotary's {name} is {dtype_name(table.dtype)}, expected {allowed}")
        if table.device != q.device:
            raise errors.DeviceMismatchError(f"{op_name}: rotary's {name} is on {table.device}, q on {q.device}")
    return cos, sin
