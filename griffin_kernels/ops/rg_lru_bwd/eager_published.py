"""Autograd through the published Python loop, forward pass included: what training with that code costs."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops.rg_lru import _published


def run(
    dy: Tensor,
    dh_last: Tensor | None,
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    y: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    wide = accumulator(x.dtype)
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    leaves = [value.detach().requires_grad_() for value in (x, *weights)]
    state = None if h0 is None else h0.to(wide, copy=True).requires_grad_()
    with torch.enable_grad():
        out, h_last = _published.rg_lru(
            leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], leaves[5], state, segment_pos, cu_seqlens
        )
    if state is not None:
        leaves.append(state)
    targets = [out] if dh_last is None else [out, h_last]
    gradients = torch.autograd.grad(targets, leaves, [dy] if dh_last is None else [dy, dh_last.to(wide)])
    return (*gradients, None) if state is None else gradients


VARIANT = Variant(
    op="rg_lru_bwd",
    name="eager.published",
    summary="autograd through the published loop, forward pass included",
    run=run,
    config=NoConfig,
    baseline=True,
)
