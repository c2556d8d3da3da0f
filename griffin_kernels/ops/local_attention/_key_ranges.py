"""Which keys each query sees, of calls of local_attention and of its gradient: the formulas at the top of op.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def may_be_blind(call: Any) -> bool:
    """Whether some query may see no key, as far as shapes tell."""
    return call.cu_seqlens_k is not None or call.k.shape[1] < call.q.shape[1]


def near(call: Any) -> Any:
    """The call with views of the last keys and values only: without those that even the first query cannot see."""
    if call.cu_seqlens_k is not None:
        return call
    reach = slice(max(0, call.k.shape[1] - (call.q.shape[1] + call.window - 1)), None)
    return call._replace(k=call.k[:, reach], v=call.v[:, reach])


def sequences(call: Any) -> Tensor:
    """int64 [T]: the packed sequence that each query is of, N for those after the last one."""
    steps = torch.arange(call.q.shape[1], device=call.q.device, dtype=torch.int64)
    return torch.searchsorted(call.cu_seqlens.long(), steps, right=True) - 1


def own_keys(call: Any) -> Tensor:
    """int64 [T]: the index of each query's own key, below the first one where the query comes before it."""
    time, keys = call.q.shape[1], call.k.shape[1]
    own = torch.arange(keys - time, keys, device=call.q.device, dtype=torch.int64)
    if call.cu_seqlens_k is None:
        return own
    ahead = (call.cu_seqlens_k.long() - call.cu_seqlens.long())[1:]
    moved: Tensor = own + (time - keys) + torch.cat([ahead, ahead[-1:]])[sequences(call)]
    return moved


def document_starts(call: Any) -> Tensor | None:
    """int64 [B or 1, T]: the first key of each query's document, or None where all rows are one document."""
    starts, time = None, call.q.shape[1]
    if call.segment_pos is not None:
        starts = (own_keys(call) - call.segment_pos.clamp_min(0)).clamp_min_(0)
    if call.cu_seqlens is not None:
        if call.cu_seqlens_k is not None:
            packed = call.cu_seqlens_k.long()[sequences(call)][None]
        else:
            # an empty sequence begins where the next one does, or at T, which is cut off
            begins = call.cu_seqlens[:-1].long()
            marks = torch.zeros(time + 1, dtype=torch.int64, device=begins.device)
            marks[begins] = begins
            packed = marks[None, :-1].cummax(1).values
        starts = packed if starts is None else torch.maximum(starts, packed)
    return starts


def document_ends(call: Any) -> Tensor | None:
    """int64 [B or 1, T]: the last key of each query's document, or None where all rows are one document."""
    ends, (time, keys) = None, (call.q.shape[1], call.k.shape[1])

    def before_next(marks: Tensor) -> Tensor:
        """marks [B or 1, T + 1]: where a document begins its first key, elsewhere S."""
        return marks.flip(1).cummin(1).values.flip(1)[:, 1:] - 1

    if call.segment_pos is not None:
        own = own_keys(call)
        if call.cu_seqlens_k is not None:  # a document that begins before the first key begins with it
            own = torch.maximum(own, call.cu_seqlens_k.long()[sequences(call)])
        begins = torch.where(call.segment_pos <= 0, own, keys)
        ends = before_next(torch.nn.functional.pad(begins, (0, 1), value=keys))
    if call.cu_seqlens is not None:
        if call.cu_seqlens_k is not None:
            offsets = call.cu_seqlens_k.long()
            packed = (torch.cat([offsets[1:], offsets[-1:]])[sequences(call)] - 1)[None]
        else:
            offsets = call.cu_seqlens.long()
            marks = torch.full((1, time + 1), keys, dtype=torch.int64, device=offsets.device)
            marks[:, offsets] = offsets
            packed = before_next(marks)
        ends = packed if ends is None else torch.minimum(ends, packed)
    return ends


def last_keys(call: Any) -> Tensor:
    """int64 [B or 1, T]: the last key that each query sees: its own, t + S - T, or one to the right.

    The one before its first key where it sees none. Never less than that of the query before.
    """
    time, keys = call.q.shape[1], call.k.shape[1]
    last, blind = own_keys(call)[None], may_be_blind(call)
    if call.right or blind:
        last, ends = (last + min(call.right, time + keys)).clamp_max(keys - 1), document_ends(call)
        last = last if ends is None else torch.minimum(last, ends)
    return torch.maximum(last, first_keys(call) - 1) if blind else last


def first_keys(call: Any) -> Tensor:
    """int64 [B or 1, T]: the first key that each query sees, or could see if there were one."""
    first, starts = (own_keys(call) - (call.window - 1)).clamp_min(0)[None], document_starts(call)
    first = first if starts is None else torch.maximum(first, starts)
    if call.cu_seqlens_k is not None:  # nothing is seen after the last sequence, far from it either
        first = first.clamp_max(call.cu_seqlens_k[-1].long())
    return first
