"""Autograd through compiled flex_attention, forward pass included; see local_attention/_flex.py. GPUs only."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _flex, _isolated


@_isolated.backward
def run(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int,
    softcap: float | None,
    scale: float | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    with torch.enable_grad():
        again, _ = _flex.attention(
            leaves[0], leaves[1], leaves[2], segment_pos, cu_seqlens, window, softcap, scale, with_lse=False
        )
    dq, dk, dv = torch.autograd.grad(again, leaves, dout)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU has the forward pass only."""
    if device.kind == "cpu":
        return "flex_attention has no backward pass on a CPU"
    return _flex.problem(case, device)


VARIANT = Variant(
    op="local_attention_bwd",
    name="compiled.flex_attention",
    summary="autograd through compiled flex_attention, forward pass included",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
