"""Autograd through attention with a T x S mask, forward pass included: what a user trains with."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention import _isolated, _masked


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
        again, _ = _masked.attention(
            leaves[0], leaves[1], leaves[2], segment_pos, cu_seqlens, window, softcap, scale, with_lse=False
        )
    dq, dk, dv = torch.autograd.grad(again, leaves, dout)
    return dq, dk, dv


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """T x S scores have to fit where they are written out; else only the mask."""
    return _masked.out_of_memory(case, device, score_tensors=5 if "softcap" in case.flags else 0)


VARIANT = Variant(
    op="local_attention_bwd",
    name="eager.masked",
    summary="autograd through scaled_dot_product_attention with a T x S mask, forward pass included",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
