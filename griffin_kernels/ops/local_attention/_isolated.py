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
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys, may_be_blind
from griffin_kernels.ops.local_attention.op import Call
from griffin_kernels.ops.local_attention_bwd.op import Call as BackwardCall


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


def _cleared_call(call: Any) -> Any:
    floating = [isinstance(value, Tensor) and value.is_floating_point() for value in call]
    return call._make(cleared(value) if is_data else value for value, is_data in zip(call, floating, strict=True))


@dataclass(frozen=True)
class KeyRanges:
    """Which keys of how many queries see: first .. last, int64 [B or 1, T]; none where the last is the one before."""

    first: Tensor
    last: Tensor
    keys: int

    @classmethod
    def of(cls, call: Any) -> KeyRanges:
        """Those of a call of local_attention or of its gradient."""
        return cls(first_keys(call), last_keys(call), call.k.shape[1])

    def _index(self, index: Tensor, like: Tensor) -> Tensor:
        """[B or 1, T] -> [B,T,...] for ``like`` [B,.,...]."""
        wide = index.reshape(*index.shape, *[1] * (like.dim() - 2))
        return wide.expand(like.shape[0], -1, *like.shape[2:])

    @property
    def _after(self) -> Tensor:
        return self.last + 1

    @property
    def blind(self) -> Tensor:
        """bool [B or 1, T, 1]: queries that see none, on which nothing depends."""
        return (self.last < self.first)[..., None]

    def sees(self, keys: Tensor) -> Tensor:
        """Marks of keys [B,S,...] -> [B,T,...]: whether a query sees one that is marked."""
        before = keys.to(torch.int32).cumsum(1)
        before = torch.cat([torch.zeros_like(before[:, :1]), before], dim=1)
        return before.gather(1, self._index(self._after, before)) > before.gather(1, self._index(self.first, before))

    def seen(self, queries: Tensor) -> Tensor:
        """Marks of queries [B,T,...] -> [B,S,...]: whether a key is seen by one that is marked."""
        marks = queries.to(torch.int32)
        shape = (marks.shape[0], self.keys + 1, *marks.shape[2:])
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


def _isolating(results: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, isolated. results: ``(call, *what run gives without what is not finite) -> what it ought to give``."""

    @functools.wraps(run)
    def isolated(call: Any, config: Any) -> Any:
        if call.q.device.type == "cpu":
            found = run(call, config)
            if finite(*(_without_blind(call, *found) if may_be_blind(call) else found)):
                return found
        return results(call, *run(_cleared_call(call), config))

    return isolated


def _without_blind(call: Any, *found: Tensor | None) -> tuple[Tensor | None, ...]:
    """Results without the -inf that lse is where nothing is seen."""
    if not isinstance(call, Call) or found[1] is None:
        return found
    return found[0], found[1].nan_to_num(nan=math.nan, posinf=math.inf, neginf=0.0)


def _forward(call: Call, out: Tensor, lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    sight, group = KeyRanges.of(call), call.q.shape[2] // call.k.shape[2]
    lost = (spoiled(call.q) & ~sight.blind) | of_query_heads(sight.sees(spoiled(call.k)), group)  # [B,T,Hq]
    values = of_query_heads(sight.sees(~call.v.isfinite()), group)
    return nan_where(out, lost[..., None] | values), None if lse is None else nan_where(lse, lost.transpose(1, 2))


def _backward(call: BackwardCall, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sight, shared = KeyRanges.of(call), call.k.shape[2]
    group = call.q.shape[2] // shared
    keys, values = spoiled(call.k), spoiled(call.v)  # [B,S,Hkv]
    weights = spoiled(call.q) | ~call.lse.isfinite().transpose(1, 2)  # [B,T,Hq]: of a query's weights
    slopes = weights | spoiled(call.dout) | spoiled(call.out)
    if call.dlse is not None:
        slopes = slopes | ~call.dlse.isfinite().transpose(1, 2)
    every = sight.seen(torch.ones_like(call.q[:, :, :shared, 0], dtype=torch.bool))
    slopes = slopes & ~sight.blind
    at_keys = sight.seen(of_key_heads(slopes, shared)) | ((keys | values) & every)
    at_values = sight.seen(of_key_heads(weights[..., None] | ~call.dout.isfinite(), shared))  # [B,S,Hkv,d]
    return (
        nan_where(dq, (slopes | of_query_heads(sight.sees(keys | values), group))[..., None]),
        nan_where(dk, at_keys[..., None]),
        nan_where(dv, at_values | (keys & every)[..., None]),
    )


forward = functools.partial(_isolating, _forward)
"""A variant's ``run`` of local_attention, isolated."""

backward = functools.partial(_isolating, _backward)
"""A variant's ``run`` of local_attention_bwd, isolated."""
