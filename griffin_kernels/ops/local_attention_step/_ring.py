"""What the variants made of PyTorch's operators share: the new token put into its ring, the rings of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.ops import _slots
from griffin_kernels.ops.local_attention._isolated import finite


def put(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, slots: Tensor | None) -> None:
    """Put k, v [B,Hkv,d] into their slots of the rings [P,W,Hkv,d], in place. Waits for no device."""
    window = k_cache.shape[1]
    rows = torch.arange(k.shape[0], device=k.device, dtype=torch.int64)
    if slots is None:
        at = (rows, positions % window)
        k_cache.index_put_(at, k)
        v_cache.index_put_(at, v)
        return
    # a row that only pads repeats what some real row writes; without one, it writes what is there
    real = slots >= 0
    source = torch.where(real, rows, real.to(torch.int8).argmax())
    at = (slots[source].clamp_min(0), positions[source] % window)
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache.index_put_(at, torch.where(real.any(), new[source], cache[at]))


def write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, slots: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``put``, then the batch's rings [B,W,Hkv,d]: those given, or copies of some where there are slots."""
    put(k, v, k_cache, v_cache, positions, slots)
    return _slots.rows(k_cache, slots), _slots.rows(v_cache, slots)


def hidden(keys: Tensor, positions: Tensor) -> Tensor:
    """bool [B,W]: slots of a batch's rings [B,W,Hkv,d] that no key of the row's document is in yet."""
    return torch.arange(keys.shape[1], device=keys.device, dtype=torch.int64) > positions[:, None]


def isolated(attend: Callable[[Tensor, Tensor], Tensor], keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """``attend(keys, values)`` whatever hidden slots hold, whose weights of 0 it may multiply with that.

    On a CPU the rings are copied, with zeros in hidden slots, only where the result is not finite; on a GPU, where
    looking would wait for the device, always.
    """
    if keys.device.type == "cpu":
        out = attend(keys, values)
        if finite(out):
            return out
    empty = hidden(keys, positions)[:, :, None, None]
    return attend(*(_without(ring, empty) for ring in (keys, values)))


def _without(ring: Tensor, empty: Tensor) -> Tensor:
    """A copy with zeros in empty slots, and the ring's strides, on which the order of a product's sums may depend."""
    copy = torch.empty_strided(ring.shape, ring.stride(), dtype=ring.dtype, device=ring.device)
    return copy.copy_(ring).masked_fill_(empty, 0.0)
