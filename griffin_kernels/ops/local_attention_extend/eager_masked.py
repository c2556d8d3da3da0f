"""Earlier keys copied from the ring, and scaled_dot_product_attention with a mask: what a user writes.

With a softcap the scores are written out, which PyTorch's kernels do not bend.
"""

from __future__ import annotations

from griffin_kernels.contract import Variant
from griffin_kernels.ops.local_attention import _isolated
from griffin_kernels.ops.local_attention.eager_masked import attention
from griffin_kernels.ops.local_attention_extend import _ring_keys

VARIANT = Variant(
    op="local_attention_extend",
    name="eager.masked",
    summary="keys copied in order, scaled_dot_product_attention with a mask",
    run=_ring_keys.extending(_isolated.forward(lambda call, config: attention(call))),
    baseline=True,
)
