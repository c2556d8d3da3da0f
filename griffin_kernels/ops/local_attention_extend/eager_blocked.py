"""Earlier keys copied from the ring, then local_attention's eager.blocked: no key is repeated for its query heads."""

from __future__ import annotations

from griffin_kernels.contract import Variant
from griffin_kernels.ops.local_attention import eager_blocked
from griffin_kernels.ops.local_attention_extend import _ring_keys

VARIANT = Variant(
    op="local_attention_extend",
    name="eager.blocked",
    summary="keys copied in order, blocks of queries against the keys within reach",
    run=_ring_keys.extending(eager_blocked.run),
    config=eager_blocked.Config,
    axes={"block": (32, 64, 128, 256, 512)},
    rank=lambda case, device: 10,
)
