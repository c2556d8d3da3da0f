"""scaled_dot_product_attention with the query heads that share a key head as its query positions.

To the kernel it is one head of G queries in place of G heads of one, so the cache is read once, not G times.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
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
    batch, _, d = q.shape
    keys, values = _ring.write(k, v, k_cache, v_cache, positions, slots)
    rows = q.reshape(batch, k_cache.shape[2], -1, d)  # [B, Hkv, G, d]
    out = _sdpa.attention(rows, keys, values, positions, scale)
    return _slots.silence(out.reshape(q.shape).contiguous(), slots), k_cache, v_cache


def rank(case: Case, device: Device) -> int:
    """Above eager.matmul on a CPU, where that leaves and enters the caches with its scores, and converts the cache."""
    return 12 if device.kind == "cpu" else 9


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa_rows",
    summary="scaled_dot_product_attention, heads of a key head as its query positions",
    run=run,
    config=NoConfig,
    reject=_sdpa.reject,
    rank=rank,
)
