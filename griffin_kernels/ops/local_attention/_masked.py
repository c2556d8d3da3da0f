"""The form a user writes without a windowed kernel: a T x S mask. Shared by the baseline and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention.cost import keys_within_reach
from griffin_kernels.ops.local_attention.op import Call, first_keys, near, scale_of


def attention(call: Call) -> tuple[Tensor, Tensor | None]:
    """out [B,T,Hq,d], lse [B,Hq,T] or None, by scaled_dot_product_attention unless softcap or lse need the scores."""
    q, k, v, _, _, _, softcap, scale, with_lse = call = near(call)
    steps = torch.arange(k.shape[1], device=q.device, dtype=torch.int64)
    first, own = first_keys(call), steps[len(steps) - q.shape[1] :]
    visible = ((steps >= first[..., None]) & (steps <= own[:, None]))[:, None]  # [B or 1, 1, T, S]
    queries, group = q.transpose(1, 2), q.shape[2] // k.shape[2]
    keys, values = (tensor.transpose(1, 2).repeat_interleave(group, dim=1) for tensor in (k, v))  # [B, Hq, S, d]
    if softcap is None and not with_lse:
        out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    wide = accumulator(q.dtype)
    scores = (queries.to(wide) * scale_of(call)) @ keys.to(wide).transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    out = torch.softmax(scores, dim=3).to(q.dtype) @ values
    return out.transpose(1, 2).contiguous(), torch.logsumexp(scores, dim=3) if with_lse else None


def out_of_memory(case: Case, device: Device, score_tensors: int) -> str | None:
    """Why T x S scores of every head do not fit, if they do not."""
    width = 8 if case.dtype == "float64" else 4
    scores = case["B"] * case["T"] * keys_within_reach(case)  # of one head
    needed = score_tensors * case["Hq"] * scores * width + scores
    if 0 < device.memory_bytes < needed:
        return f"T x S scores need {needed / 2**30:.0f} GiB, the device has {device.memory_bytes / 2**30:.0f}"
    return None
