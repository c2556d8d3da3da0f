"""Two batched products and a softmax; query heads that share a key head are rows of one product.

Without slots the rings are read in place, never repeated for the query heads; with slots those of the batch are copied
first. Scores, softmax and sums in float32, for which half-precision caches are converted on a CPU: PyTorch has no
product there that returns unrounded sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops import _products
from griffin_kernels.ops.local_attention.op import scale_of
from griffin_kernels.ops.local_attention_step import _ring
from griffin_kernels.ops.local_attention_step.op import Call


def attend(call: Call, keys: Tensor, values: Tensor) -> Tensor:
    (batch, _, d), shared, softcap = call.q.shape, keys.shape[2], call.softcap
    rows = call.q.reshape(batch, shared, -1, d)  # [B, Hkv, G, d]
    hidden = _ring.hidden(keys, call.positions)[:, None, None]
    # one product for each key head: a product takes one stride from matrix to matrix, so all at once copy the cache
    scores = _joined([_products.unrounded(rows[:, h], keys[:, :, h].mT) for h in range(shared)])  # [B, Hkv, G, W]
    scores.mul_(scale_of(call))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), dim=3)
    if _products.has_unrounded(call.q):
        weights = weights.to(call.q.dtype)
    return _joined([_products.unrounded(weights[:, h], values[:, :, h]) for h in range(shared)])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0][:, None] if len(parts) == 1 else torch.stack(parts, dim=1)


VARIANT = Variant(
    op="local_attention_step",
    name="eager.matmul",
    summary="two batched products by key head, softmax in float32",
    run=_ring.decoding(attend),
    rank=lambda case, device: 10,
)
