"""torch's conv1d with one group per channel: what published code calls.

Channels move before time and back, and a state is put before x; conv1d itself pads the zeros. It knows nothing of
documents, but a single token sees only one: what its state holds of another is zeroed.
Source: transformers' RecurrentGemma, which pads K-1 zeros on both sides and cuts the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.temporal_conv1d.op import kept, new_state

DOCUMENTS = "conv1d reads across the documents of segment_pos"


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor | None,
    segment_pos: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor]:
    _, time, width = x.shape
    rows = weight.shape[0] - 1
    before = state
    if before is not None and segment_pos is not None:
        before = before.masked_fill(~kept(segment_pos - 1, rows + 1)[..., None], 0.0)
    inputs = x if before is None else torch.cat([before, x], dim=1)
    y = torch.nn.functional.conv1d(
        inputs.transpose(1, 2),
        weight.t()[:, None],  # [D, 1, K]
        bias,
        padding=rows if state is None else 0,
        groups=width,
    )
    return y[..., :time].transpose(1, 2).contiguous(), new_state(x, state, segment_pos, rows + 1)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """Documents may begin anywhere but at a single token."""
    return DOCUMENTS if "segmented" in case.flags and case["T"] > 1 else None


VARIANT = Variant(
    op="temporal_conv1d",
    name="eager.grouped",
    summary="torch's conv1d with a group per channel",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
