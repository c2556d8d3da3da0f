"""scaled_dot_product_attention with the query heads that share a key head as its query positions.

To the kernel it is one head of G queries in place of G heads of one, so the cache is read once, not G times.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.local_attention_step import _ring, eager_sdpa
from griffin_kernels.ops.local_attention_step.op import Call


def attend(call: Call, keys: Tensor, values: Tensor) -> Tensor:
    batch, _, d = call.q.shape
    return eager_sdpa.attention(call, keys, values, call.q.reshape(batch, keys.shape[2], -1, d))  # [B, Hkv, G, d]


def rank(case: Case, device: Device) -> int:
    """Above eager.matmul on a CPU, where that leaves and enters the caches with its scores, and converts the cache."""
    return 12 if device.kind == "cpu" else 9


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa_rows",
    summary="scaled_dot_product_attention, heads of a key head as its query positions",
    run=_ring.decoding(attend),
    reject=eager_sdpa.reject,
    rank=rank,
)
