"""What the variants made of PyTorch's operators share: the new token put into its ring, the rings of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.ops import _slots


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
