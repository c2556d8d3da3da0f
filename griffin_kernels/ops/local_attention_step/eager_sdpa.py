"""scaled_dot_product_attention with grouped heads and a mask: what a user writes to decode."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops.local_attention_step import _sdpa


def run(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    softcap: float | None,
    scale: float | None,
    *,
    config: NoConfig,
) -> tuple[Tensor]:
    out = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None],
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        attn_mask=_sdpa.visible(k_cache, positions),
        scale=scale,
        enable_gqa=q.shape[1] != k_cache.shape[2],
    )
    return (out[:, :, 0].contiguous(),)


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa",
    summary="scaled_dot_product_attention with enable_gqa and a mask",
    run=run,
    config=NoConfig,
    reject=_sdpa.reject,
    baseline=True,
)
