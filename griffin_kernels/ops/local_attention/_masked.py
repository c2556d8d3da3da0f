"""The form a user writes without a windowed kernel: a T x T mask. Shared by the baseline and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention.op import first_keys


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """out [B,T,Hq,d], lse [B,Hq,T] or None, by scaled_dot_product_attention unless softcap or lse need the scores."""
    time, group = q.shape[1], q.shape[2] // k.shape[2]
    first = first_keys(time, window, segment_pos, cu_seqlens, q.device)
    steps = torch.arange(time, device=q.device)
    visible = ((steps >= first[..., None]) & (steps <= steps[:, None]))[:, None]  # [B or 1, 1, T, T]
    queries = q.transpose(1, 2)
    keys, values = (tensor.transpose(1, 2).repeat_interleave(group, dim=1) for tensor in (k, v))  # [B, Hq, T, d]
    if softcap is None and not with_lse:
        out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    wide = accumulator(q.dtype)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    scores = (queries.to(wide) * factor) @ keys.to(wide).transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    out = torch.softmax(scores, dim=3).to(q.dtype) @ values
    return out.transpose(1, 2).contiguous(), torch.logsumexp(scores, dim=3) if with_lse else None


def out_of_memory(case: Case, device: Device, score_tensors: int) -> str | None:
    """Why T x T scores of every head do not fit, if they do not."""
    width = 8 if case.dtype == "float64" else 4
    needed = score_tensors * case["B"] * case["Hq"] * case["T"] ** 2 * width + case["B"] * case["T"] ** 2
    if 0 < device.memory_bytes < needed:
        return f"T x T scores need {needed / 2**30:.0f} GiB, the device has {device.memory_bytes / 2**30:.0f}"
    return None
