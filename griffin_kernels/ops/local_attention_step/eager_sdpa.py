"""scaled_dot_product_attention with grouped heads and a mask: what a user writes to decode."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _slots
from griffin_kernels.ops.local_attention_step import _ring, _sdpa


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    slots: Tensor | None,
    softcap: float | None,
    scale: float | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _ring.write(k, v, k_cache, v_cache, positions, slots)
    grouped = q.shape[1] != k_cache.shape[2]
    out = _sdpa.attention(q[:, :, None], keys, values, positions, scale, grouped)
    return _slots.silence(out[:, :, 0].contiguous(), slots), k_cache, v_cache


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa",
    summary="scaled_dot_product_attention with enable_gqa and a mask",
    run=run,
    config=NoConfig,
    reject=_sdpa.reject,
    baseline=True,
)
