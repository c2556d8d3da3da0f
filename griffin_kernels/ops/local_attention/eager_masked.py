"""scaled_dot_product_attention with a T x S mask: what a user writes who has no windowed kernel.

With a softcap, or where the backward pass wants lse, the scores are written out: PyTorch's kernels take and
give neither. Work and memory grow with T * S, whatever the window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant, accumulator
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _isolated
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys, may_be_blind, near
from griffin_kernels.ops.local_attention.cost import keys_within_reach
from griffin_kernels.ops.local_attention.op import Call, scale_of


def attention(call: Call) -> tuple[Tensor, Tensor | None]:
    """out [B,T,Hq,d], lse [B,Hq,T] or None, by scaled_dot_product_attention unless softcap or lse need the scores."""
    call = near(call)
    q, k, v, softcap, scale, with_lse = call.q, call.k, call.v, call.softcap, call.scale, call.with_lse
    steps = torch.arange(k.shape[1], device=q.device, dtype=torch.int64)
    first, last = first_keys(call), last_keys(call)
    visible = ((steps >= first[..., None]) & (steps <= last[..., None]))[:, None]  # [B or 1, 1, T, S]
    blind = (last < first)[:, None, :, None] if may_be_blind(call) else None  # [B or 1, 1, T, 1]
    if blind is not None:
        visible = visible | blind  # kernels differ in what they make of a row without keys
    queries, group = q.transpose(1, 2), q.shape[2] // k.shape[2]
    keys, values = (tensor.transpose(1, 2).repeat_interleave(group, dim=1) for tensor in (k, v))  # [B, Hq, S, d]
    if softcap is None and not with_lse:
        out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scale)
        out = out if blind is None else out.masked_fill(blind, 0.0)
        return out.transpose(1, 2).contiguous(), None
    wide = accumulator(q.dtype)
    scores = (queries.to(wide) * scale_of(call)) @ keys.to(wide).transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    out, lse = torch.softmax(scores, dim=3).to(q.dtype) @ values, torch.logsumexp(scores, dim=3) if with_lse else None
    if blind is not None:
        out = out.masked_fill(blind, 0.0)
        lse = None if lse is None else lse.masked_fill(blind[..., 0], -torch.inf)
    return out.transpose(1, 2).contiguous(), lse


def out_of_memory(case: Case, device: Device, score_tensors: int) -> str | None:
    """Why T x S scores of every head do not fit, if they do not."""
    width = 8 if case.dtype == "float64" else 4
    scores = case["B"] * case["T"] * keys_within_reach(case)  # of one head
    needed = score_tensors * case["Hq"] * scores * width + scores
    if 0 < device.memory_bytes < needed:
        return f"T x S scores need {needed / 2**30:.0f} GiB, the device has {device.memory_bytes / 2**30:.0f}"
    return None


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """T x S scores have to fit where they are written out; else only the mask."""
    explicit = "softcap" in case.flags or "lse" in case.data
    return out_of_memory(case, device, score_tensors=3 if explicit else 0)


VARIANT = Variant(
    op="local_attention",
    name="eager.masked",
    summary="scaled_dot_product_attention with a T x S mask",
    run=_isolated.forward(lambda call, config: attention(call)),
    reject=reject,
    baseline=True,
)
