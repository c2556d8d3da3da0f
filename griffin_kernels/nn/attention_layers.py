"""Local attention with rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from griffin_kernels import errors
from griffin_kernels.functional import local_attention, local_attention_step
from griffin_kernels.functional._rotary import rotate
from griffin_kernels.nn.drawing import draw_linear, factory_of, positive, undrawn
from griffin_kernels.nn.linear_layers import Linear


def rope_tables(segment_pos: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, 1, head_dim / 4] of position * base^(-2i / (head_dim / 2)).

    float32, as in the published models; float64 for a float64 model. Source: google-deepmind/recurrentgemma.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=compute, device=segment_pos.device) / half
    angles = segment_pos[:, :, None, None].to(compute) * (1.0 / base**exponents)
    return angles.cos(), angles.sin()


def packed_positions(cu_seqlens: Tensor, time: int, device: torch.device) -> Tensor:
    """``segment_pos`` int64 [1, T] of packed sequences by their offsets; waits for no device."""
    offsets = cu_seqlens.to(device, torch.int64, non_blocking=True)
    steps = torch.arange(time, dtype=torch.int64, device=device)
    sequence = torch.searchsorted(offsets[1:].contiguous(), steps, right=True)  # past the end too, where steps pad
    return (steps - offsets[sequence])[None]


class LocalAttention(nn.Module):
    """Causal attention to the last ``window`` tokens of a document, or to all of them; multi-query by default.

    width: of x and of the result. heads: Hq, query heads. kv_heads: Hkv, which divides heads. head_dim: d, a multiple
    of 4; width / heads if None. window: tokens that a query sees, itself included; None for all. RoPE turns the first
    half of every head by position * rope_base^(-2i / (d / 2)).

    ``qkv.weight``: [(Hq + 2 Hkv) d, width]: rows of the queries, the keys, the values; only ``out`` has a bias.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int = 1,
        head_dim: int | None = None,
        window: int | None = 1024,
        rope_base: float = 10_000.0,
        draw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(width=width, heads=heads, kv_heads=kv_heads, window=1 if window is None else window)
        if head_dim is None:
            if width % heads:
                raise errors.ArgumentError(f"heads is {heads}, which does not divide {width=}; give head_dim")
            head_dim = width // heads
        if heads % kv_heads:
            raise errors.ArgumentError(f"kv_heads is {kv_heads}, which does not divide {heads=}")
        if head_dim < 1 or head_dim % 4:
            raise errors.ArgumentError(f"head_dim is {head_dim}, expected a multiple of 4: RoPE turns half in pairs")
        factory = factory_of(device, dtype)
        self.window, self.rope_base = window, rope_base
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = undrawn(Linear, width, (heads + 2 * kv_heads) * head_dim, bias=False, factory=factory)
        self.out = undrawn(Linear, heads * head_dim, width, factory=factory)
        if draw:
            self.reset_parameters()

    def reset_parameters(self, last: float = 1.0) -> None:
        """last: variance of the last matrix, in 1 / inputs; published models have 2 / layers."""
        draw_linear(self.qkv)
        draw_linear(self.out, last)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, Hq, d], k and v [B, T, Hkv, d] of x [B, T, width]; q and k are turned by cos and sin."""
        qkv = self.qkv(x).unflatten(2, (-1, self.head_dim))
        rotated = rotate(qkv[:, :, : -self.kv_heads], cos, sin)  # the first half of every head
        return rotated[:, :, : self.heads], rotated[:, :, self.heads :], qkv[:, :, -self.kv_heads :]

    def forward(self, x: Tensor, *, segment_pos: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x: [B, T, width]; segment_pos and cu_seqlens as ``local_attention`` takes them.

        Positions of RoPE are counted from each document's beginning; a row is one document without either. The result
        has x's shape and dtype. Differentiable.
        """
        batch, time, _ = x.shape
        if cu_seqlens is not None:
            positions = packed_positions(cu_seqlens, time, x.device)
        elif segment_pos is not None:
            positions = segment_pos
        else:
            positions = torch.arange(time, dtype=torch.int64, device=x.device).expand(batch, time)
        q, k, v = self.project(x, *rope_tables(positions, self.head_dim, self.rope_base, x.dtype))
        window = max(time, 1) if self.window is None else self.window
        out = local_attention(q, k, v, window=window, segment_pos=segment_pos, cu_seqlens=cu_seqlens)
        return self.out(out.flatten(2))  # type: ignore[no-any-return]

    def step(self, x: Tensor, keys: Tensor, values: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """One token. x: [B, width]; positions: int64 or int32 [B], each token's position in its document; no gradient.

        keys, values: [P, C, Hkv, d], rings that are changed in place: position p has slot p mod C. C is the window, or
        above every position where that is None. options: as ``local_attention_step`` takes them. Returns [B, width].
        """
        tables = rope_tables(positions[:, None], self.head_dim, self.rope_base, x.dtype)
        q, k, v = (part[:, 0] for part in self.project(x[:, None], *tables))
        out = local_attention_step(q, k, v, keys, values, positions, **options)
        return self.out(out.flatten(1))  # type: ignore[no-any-return]
