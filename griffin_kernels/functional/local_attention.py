"""The public local_attention: a differentiable operator over the tuned kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.functional import _bridge

_local_attention = _bridge.Differentiable("local_attention")


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal softmax attention of every query to the last ``window`` keys of its own document.

    q: [B, T, Hq, d]; k, v: [B, S, Hkv, d], S >= T, Hq a multiple of Hkv (1: multi-query attention); float32, bfloat16,
        float16 or float64, the same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
        The queries belong to the last T of the S keys: to go on with a sequence, put the keys and values kept from
        earlier calls (the last window - 1 are enough) before the new ones.
    window: a query sees its own key and the window - 1 before it. DeepMind's published mask lets one more through.
    segment_pos: int64 or int32 [B, T], each query's position in its document, rising by one from token to token. A
        query at position p sees at most the last p + 1 keys: none from before its document, kept keys included.
        Without it, all S keys are of one document.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; none sees another. S must be T.
        On a GPU its values are not checked: that would wait for the device.
    softcap: scores become softcap * tanh(scores / softcap). scale: of the scores; d ** -0.5 if None.

    Returns [B, T, Hq, d] in q's dtype; softmax and sums in float32 or better. Differentiable once in q, k and v.
    T = 0 and B = 0 give empty outputs.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data). In bfloat16 and float16 most variants
    round softmax's weights before their product with v, and in the gradient those of the scores before theirs with
    q and k, as matrix units take them; out and gradients are rounded once. Error against float64, the worst variant
    on normal inputs, as norm of the error over norm of the result: float32 3e-07, bfloat16 6e-03, float16 4e-04; of
    gradients float32 6e-07, bfloat16 9e-03, float16 6e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    """
    if isinstance(segment_pos, Tensor) and segment_pos.dtype == torch.int32:
        segment_pos = segment_pos.long()
    training = torch.is_grad_enabled() and any([isinstance(t, Tensor) and t.requires_grad for t in (q, k, v)])
    out: Tensor = _local_attention(q, k, v, segment_pos, cu_seqlens, window, softcap, scale, training)[0]
    return out
