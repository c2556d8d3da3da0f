"""torch's conv1d with one group per channel: what published code calls.

Channels move before time and back, and a state is put before x; conv1d itself pads the zeros. It knows nothing of
documents, but a single token sees only one: what its state holds of another is zeroed. Packed sequences are copied
apart first.
Source: transformers' RecurrentGemma, which pads K-1 zeros on both sides and cuts the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.temporal_conv1d._conv_packed import places, spread
from griffin_kernels.ops.temporal_conv1d.op import Call, kept, new_state

DOCUMENTS = "conv1d reads across the documents of segment_pos"


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    x, weight, bias, state, segment_pos, cu_seqlens = call
    rows = weight.shape[0] - 1
    after = new_state(x, state, segment_pos, cu_seqlens, rows + 1)
    if cu_seqlens is not None:
        where = places(cu_seqlens, x.shape[1], rows + 1)
        return grouped(spread(x, state, where), weight, bias, None)[:, where.steps], after
    before = state
    if before is not None and segment_pos is not None:
        before = before.masked_fill(~kept(segment_pos - 1, rows + 1)[..., None], 0.0)
    return grouped(x, weight, bias, before), after


def grouped(x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None) -> Tensor:
    """y of one document that follows ``before`` [B,K-1,D], or zeros."""
    _, time, width = x.shape
    inputs = x if before is None else torch.cat([before, x], dim=1)
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), bias.dtype)
    y = torch.nn.functional.conv1d(
        inputs.transpose(1, 2).to(dtype),
        weight.t()[:, None].to(dtype),  # [D, 1, K]
        bias.to(dtype),
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
