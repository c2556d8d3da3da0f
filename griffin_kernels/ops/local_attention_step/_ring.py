"""What the variants made of PyTorch's operators share: the new token put into its ring, the rings of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _slots
from griffin_kernels.ops.local_attention._isolated import finite
from griffin_kernels.ops.local_attention_step.op import Call


def put(call: Call) -> None:
    """Put k, v [B,Hkv,d] into their slots of the rings [P,W,Hkv,d], in place. Waits for no device."""
    _, k, v, k_cache, v_cache, positions, *_ = call
    slots, _ = _slots.of(call, k_cache.shape[0])
    rows, at = torch.arange(k.shape[0], device=k.device, dtype=torch.int64), positions % k_cache.shape[1]
    if slots is None:
        k_cache.index_put_((rows, at), k)
        v_cache.index_put_((rows, at), v)
        return
    # a row that only pads repeats what some real row writes; without one, it writes what is there
    real = slots >= 0
    source = torch.where(real, rows, real.to(torch.int8).argmax())
    where = (slots[source].clamp_min(0), at[source])
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache.index_put_(where, torch.where(real.any(), new[source], cache[where]))


def hidden(keys: Tensor, positions: Tensor) -> Tensor:
    """bool [B,W]: slots of a batch's rings [B,W,Hkv,d] that no key of the row's document is in yet."""
    return torch.arange(keys.shape[1], device=keys.device, dtype=torch.int64) > positions[:, None]


def decoding(attend: Callable[[Call, Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """``run`` of a variant that puts the new token into its ring, then attends to the batch's rings.

    attend: ``(call, keys, values) -> out`` in any dtype and shape of q's size; keys, values: [B,W,Hkv,d], the rings
    given, or copies of some where there are slots. Whatever hidden slots hold does not matter, though their weights of
    0 may be multiplied with it: on a CPU rings are copied, with zeros in hidden slots, only where the result is not
    finite; on a GPU, where looking would wait for the device, always.
    """

    def run(call: Call, config: Any) -> tuple[Tensor, Tensor, Tensor]:
        put(call)
        slots, _ = _slots.of(call, call.k_cache.shape[0])
        rings = [_slots.rows(cache, slots) for cache in (call.k_cache, call.v_cache)]
        out = attend(call, *rings) if call.q.device.type == "cpu" else None
        if out is None or not finite(out):
            empty = hidden(rings[0], call.positions)[:, :, None, None]
            out = attend(call, *(_without(ring, empty) for ring in rings))
        return _slots.silence(out.reshape(call.q.shape).to(call.q.dtype), slots), call.k_cache, call.v_cache

    return run


def _without(ring: Tensor, empty: Tensor) -> Tensor:
    """A copy with zeros in empty slots, and the ring's strides, on which the order of a product's sums may depend."""
    copy = torch.empty_strided(ring.shape, ring.stride(), dtype=ring.dtype, device=ring.device)
    return copy.copy_(ring).masked_fill_(empty, 0.0)
