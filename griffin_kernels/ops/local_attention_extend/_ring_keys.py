"""What the variants share that lay the keys of a call out in order: the earlier ones copied from the ring, then new.

They are then a call of local_attention, whose queries are the last T of W - 1 + T keys and whose positions say how many
of these belong to the document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _pages
from griffin_kernels.ops.local_attention.op import Call as AttentionCall
from griffin_kernels.ops.local_attention_extend.op import Call, places_of, real, rows_of, token_positions


def put(call: Call, there: Tensor) -> None:
    """Put the real tokens, ``there`` bool [B,T], into their slots of the rings, in place. Waits for no device."""
    batch, time = there.shape
    positions = token_positions(call)
    rows, at = (index.flatten() for index in places_of(call, positions))
    if call.block_table is not None:
        there = there & _pages.there(call, positions)
    tokens = there.flatten()
    if rows_of(call) is None and call.lengths is None:
        source, any_real = torch.arange(batch * time, device=there.device, dtype=torch.int64), None
    else:
        # one that only pads repeats what some real one writes; without one, it writes what is there
        count = torch.arange(batch * time, device=there.device, dtype=torch.int64)
        source, any_real = torch.where(tokens, count, tokens.to(torch.int8).argmax()), tokens.any()
    where = rows[source], at[source]
    for cache, new in ((call.k_cache, call.k), (call.v_cache, call.v)):
        written = new.reshape(batch * time, *new.shape[2:])[source]
        cache.index_put_(where, written if any_real is None else torch.where(any_real, written, cache[where]))


def in_order(call: Call) -> AttentionCall:
    """The call of local_attention that gives the outputs of real tokens. To be made before ``put``."""
    q, k, v, k_cache, v_cache, positions, _, _, _, window, softcap, scale, _ = call
    places = positions[:, None] + torch.arange(1 - window, 0, device=q.device, dtype=torch.int64)  # [B, W - 1]
    where, before = places_of(call, places), (places < 0)[..., None, None]
    keys, values = (
        torch.cat([cache[where].masked_fill_(before, 0.0), new], dim=1) for cache, new in ((k_cache, k), (v_cache, v))
    )
    return AttentionCall(q, keys, values, token_positions(call), None, None, window, softcap, scale)


def extending(
    attend: Callable[[AttentionCall, Any], tuple[Any, ...]],
) -> Callable[[Call, Any], tuple[Tensor, Tensor, Tensor]]:
    """``run`` of a variant that attends by ``run`` of a variant of local_attention."""

    def run(call: Call, config: Any) -> tuple[Tensor, Tensor, Tensor]:
        laid_out, there = in_order(call), real(call)
        put(call, there)
        out, _ = attend(laid_out, config)
        if rows_of(call) is not None or call.lengths is not None:
            out = out.masked_fill(~there[..., None, None], 0.0)
        return out, call.k_cache, call.v_cache

    return run
