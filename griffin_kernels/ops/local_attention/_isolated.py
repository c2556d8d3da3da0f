"""Isolation for variants that multiply hidden scores' weights of 0 with values: 0 times NaN is NaN.

What is not finite is replaced by zeros, the variant runs, and then every result that depends on what was replaced
becomes NaN: which ones follows from the range of keys that each query sees. All other results are bitwise those of a
call without it. On a CPU a call runs as it is, and again in this way only where its results are not all finite. On a
GPU, where looking would wait for the device, every call runs in this way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops.local_attention.op import first_keys


def finite(*tensors: Tensor | None) -> bool:
    """Whether all elements are. Sums tell, and are as fast as memory; one that overflows only costs time.

    A sum in the tensor's own dtype comes first: PyTorch is six times slower where it converts 16-bit data.
    """
    return all(
        math.isfinite(tensor.sum()) or math.isfinite(tensor.sum(dtype=accumulator(tensor.dtype)))
        for tensor in tensors
        if tensor is not None
    )


def cleared(tensor: Tensor) -> Tensor:
    """The tensor with zeros for what is not finite, its strides kept: the order of a product's sums may follow them."""
    made = torch.where(tensor.isfinite(), tensor, 0.0)
    if made.stride() == tensor.stride() or 0 in tensor.stride():
        return made
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(made)


def spoiled(tensor: Tensor) -> Tensor:
    """bool, True for rows (all but the last dim) that hold something not finite."""
    return ~tensor.isfinite().all(-1)


def nan_where(tensor: Tensor, spoiled: Tensor) -> Tensor:
    return tensor.masked_fill(spoiled, math.nan)


@dataclass(frozen=True)
class Sight:
    """Which keys queries see: first .. own. first: int64 [B or 1, T]."""

    first: Tensor
    earlier: int

    @staticmethod
    def of(q: Tensor, k: Tensor, segment_pos: Tensor | None, cu_seqlens: Tensor | None, window: int) -> Sight:
        first = first_keys(q.shape[1], k.shape[1], window, segment_pos, cu_seqlens, q.device)
        return Sight(first, k.shape[1] - q.shape[1])

    def _index(self, index: Tensor, like: Tensor) -> Tensor:
        """[B or 1, T] -> [B,T,...] for ``like`` [B,.,...]."""
        wide = index.reshape(*index.shape, *[1] * (like.dim() - 2))
        return wide.expand(like.shape[0], -1, *like.shape[2:])

    @property
    def _after(self) -> Tensor:
        time = self.first.shape[1]
        steps = torch.arange(self.earlier + 1, self.earlier + 1 + time, device=self.first.device, dtype=torch.int64)
        return steps[None]

    def sees(self, keys: Tensor) -> Tensor:
        """Marks of keys [B,S,...] -> [B,T,...]: whether a query sees one that is marked."""
        before = keys.to(torch.int32).cumsum(1)
        before = torch.cat([torch.zeros_like(before[:, :1]), before], dim=1)
        return before.gather(1, self._index(self._after, before)) > before.gather(1, self._index(self.first, before))

    def seen(self, queries: Tensor) -> Tensor:
        """Marks of queries [B,T,...] -> [B,S,...]: whether a key is seen by one that is marked."""
        marks = queries.to(torch.int32)
        shape = (marks.shape[0], self.earlier + marks.shape[1] + 1, *marks.shape[2:])
        changes = torch.zeros(shape, dtype=torch.int32, device=marks.device)
        changes.scatter_add_(1, self._index(self.first, marks), marks)
        changes.scatter_add_(1, self._index(self._after, marks), -marks)
        return changes.cumsum(1)[:, :-1] > 0


def of_query_heads(marks: Tensor, group: int) -> Tensor:
    """[B,.,Hkv,...] -> [B,.,Hq,...]."""
    return marks.repeat_interleave(group, dim=2)


def of_key_heads(marks: Tensor, shared: int) -> Tensor:
    """[B,.,Hq,...] -> [B,.,Hkv,...]: whether one of the heads is marked."""
    return marks.reshape(*marks.shape[:2], shared, -1, *marks.shape[3:]).any(3)


def forward(run: Callable[..., Any]) -> Callable[..., Any]:
    """A variant's ``run`` of local_attention, isolated."""

    @functools.wraps(run)
    def isolated(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segment_pos: Tensor | None,
        cu_seqlens: Tensor | None,
        window: int,
        *options: Any,
        **more: Any,
    ) -> Any:
        call = functools.partial(run, segment_pos=segment_pos, cu_seqlens=cu_seqlens, window=window)
        names = ("softcap", "scale", "with_lse")
        more |= dict(zip(names, options, strict=False))
        if q.device.type == "cpu":
            out, lse = call(q, k, v, **more)
            if finite(out, lse):
                return out, lse
        out, lse = call(cleared(q), cleared(k), cleared(v), **more)
        sight, group = Sight.of(q, k, segment_pos, cu_seqlens, window), q.shape[2] // k.shape[2]
        lost = spoiled(q) | of_query_heads(sight.sees(spoiled(k)), group)  # [B,T,Hq]
        values = of_query_heads(sight.sees(~v.isfinite()), group)
        return (
            nan_where(out, lost[..., None] | values),
            None if lse is None else nan_where(lse, lost.transpose(1, 2)),
        )

    return isolated


def backward(run: Callable[..., Any]) -> Callable[..., Any]:
    """A variant's ``run`` of local_attention_bwd, isolated."""

    @functools.wraps(run)
    def isolated(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        segment_pos: Tensor | None,
        cu_seqlens: Tensor | None,
        window: int,
        *options: Any,
        **more: Any,
    ) -> Any:
        call = functools.partial(run, segment_pos=segment_pos, cu_seqlens=cu_seqlens, window=window)
        more |= dict(zip(("softcap", "scale"), options, strict=False))
        given = (dout, q, k, v, out, lse)
        if q.device.type == "cpu":
            found = call(*given, **more)
            if finite(*found):
                return found
        dq, dk, dv = call(*map(cleared, given), **more)
        sight, shared = Sight.of(q, k, segment_pos, cu_seqlens, window), k.shape[2]
        group = q.shape[2] // shared
        keys, values = spoiled(k), spoiled(v)  # [B,S,Hkv]
        weights = spoiled(q) | ~lse.isfinite().transpose(1, 2)  # [B,T,Hq]: of a query's weights
        slopes = weights | spoiled(dout) | spoiled(out)
        every = sight.seen(torch.ones_like(keys[:, sight.earlier :]))
        at_keys = sight.seen(of_key_heads(slopes, shared)) | ((keys | values) & every)
        at_values = sight.seen(of_key_heads(weights[..., None] | ~dout.isfinite(), shared))  # [B,S,Hkv,d]
        return (
            nan_where(dq, (slopes | of_query_heads(sight.sees(keys | values), group))[..., None]),
            nan_where(dk, at_keys[..., None]),
            nan_where(dv, at_values | (keys & every)[..., None]),
        )

    return isolated
