"""scaled_dot_product_attention with grouped heads and a mask: what a user writes to decode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention_step import _ring
from griffin_kernels.ops.local_attention_step.op import Call


def attention(call: Call, keys: Tensor, values: Tensor, queries: Tensor, grouped: bool = False) -> Tensor:
    """[B,H,t,d] from queries of that shape, to the visible slots of the batch's rings [B,W,Hkv,d]."""
    visible = ~_ring.hidden(keys, call.positions)[:, None, None]
    return torch.nn.functional.scaled_dot_product_attention(
        queries, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible, scale=call.scale, enable_gqa=grouped
    )


def reject(case: Case, device: Device, config: Any) -> str | None:
    return "scaled_dot_product_attention has no softcap" if "softcap" in case.flags else None


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa",
    summary="scaled_dot_product_attention with enable_gqa and a mask",
    run=_ring.decoding(
        lambda call, keys, values: attention(
            call, keys, values, call.q[:, :, None], grouped=call.q.shape[1] != keys.shape[2]
        )
    ),
    reject=reject,
    baseline=True,
)
