"""torch's conv1d with one group per channel: what published code calls.

Channels move before time and back, and a state is put before x; conv1d itself pads the zeros. It knows nothing of
documents, but a single token sees only one: what its state holds of another is zeroed. Packed sequences are copied
apart first. An activation is a call of its own, of sums that have been rounded, and adding a residual is another.
Source: transformers' RecurrentGemma, which pads K-1 zeros on both sides and cuts the result.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _activation
from griffin_kernels.ops.temporal_conv1d._conv_packed import places, spread
from griffin_kernels.ops.temporal_conv1d.op import Call, kept, new_state

DOCUMENTS = "conv1d reads across the documents of segment_pos"


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    after = new_state(call.x, call.state, call.segment_pos, call.cu_seqlens, call.weight.shape[0])
    y = _activation.apply(call.activation, sums(call))
    return y if call.residual is None else y + call.residual, after


def sums(call: Call) -> Tensor:
    """[B,T,D] in x's dtype, as torch's own function gives them."""
    x, weight, bias, state, segment_pos, cu_seqlens, *_ = call
    taps, before = weight.shape[0], state
    if cu_seqlens is not None:
        where = places(cu_seqlens, x.shape[1], taps)
        return grouped(spread(x, state, where), weight, bias, None)[:, where.steps]
    if before is not None and segment_pos is not None:
        before = before.masked_fill(~kept(segment_pos - 1, taps)[..., None], 0.0)
    return grouped(x, weight, bias, before)


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None) -> Tensor:
    """The sums of one document that follows ``before`` [B,K-1,D], or zeros."""
    _, time, width = x.shape
    inputs = x if before is None else torch.cat([before, x], dim=1)
    dtype = functools.reduce(torch.promote_types, [t.dtype for t in (x, weight, bias) if t is not None])
    y = torch.nn.functional.conv1d(
        inputs.transpose(1, 2).to(dtype),
        weight.t()[:, None].to(dtype),  # [D, 1, K]
        None if bias is None else bias.to(dtype),
        padding=weight.shape[0] - 1 if before is None else 0,
        groups=width,
    )
    return y[..., :time].transpose(1, 2).to(x.dtype).contiguous()


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """Documents may begin anywhere but at a single token."""
    single = case["T"] == 1 and "packed" not in case.flags
    return DOCUMENTS if "segmented" in case.flags and not single else None


VARIANT = Variant(
    op="temporal_conv1d",
    name="eager.grouped",
    summary="torch's conv1d with a group per channel",
    run=run,
    reject=reject,
    baseline=True,
)
