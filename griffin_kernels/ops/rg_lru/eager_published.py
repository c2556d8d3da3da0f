"""The published PyTorch code: gates, then a Python loop over time, two kernels a step.

Source: google-deepmind/recurrentgemma and transformers' RecurrentGemma; see _published.py for what differs.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.rg_lru import _published


def run(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor]:
    return _published.rg_lru(
        x,
        a_param,
        input_gate_weight,
        input_gate_bias,
        recurrence_gate_weight,
        recurrence_gate_bias,
        h0,
        segment_pos,
        cu_seqlens,
    )


VARIANT = Variant(
    op="rg_lru",
    name="eager.published",
    summary="the published code: a Python loop over time",
    run=run,
    config=NoConfig,
    baseline=True,
)
