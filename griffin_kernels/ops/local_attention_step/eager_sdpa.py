"""scaled_dot_product_attention with grouped heads and a mask: what a user writes to decode."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops.local_attention_step import _ring, _sdpa
from griffin_kernels.ops.local_attention_step.op import Call


def attend(call: Call, keys: Tensor, values: Tensor) -> Tensor:
    return _sdpa.attention(call, keys, values, call.q[:, :, None], grouped=call.q.shape[1] != keys.shape[2])


VARIANT = Variant(
    op="local_attention_step",
    name="eager.sdpa",
    summary="scaled_dot_product_attention with enable_gqa and a mask",
    run=_ring.decoding(attend),
    reject=_sdpa.reject,
    baseline=True,
)
