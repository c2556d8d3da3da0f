"""The public recurrent_block: a differentiable operator over the tuned kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.functional import _bridge
from griffin_kernels.functional.rg_lru import RGLRUWeights, checked

_recurrent_block = _bridge.Differentiable("recurrent_block")


def recurrent_block(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weights: RGLRUWeights,
    *,
    conv_state: Tensor | None = None,
    h0: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All that lies between the linear layers of Griffin's and Hawk's recurrent block.

        u = temporal_conv1d(x),   h = rg_lru(u),   out = h * gelu(y)          gelu in its tanh form

    x, y: [B, T, D], the two branches, float32, bfloat16, float16 or float64, any strides; all weights in that dtype.
    conv_weight: [K, D]. conv_bias: [D]. weights: RGLRUWeights.
    conv_state: [B, K-1, D] in x's dtype, the inputs before x, oldest first; zeros if None. h0: [B, D] in x's dtype or
        float32, the state before the first step; None for a fresh sequence, with which the RG-LRU begins.
    segment_pos: int64 or int32 [B, T], each token's position in its document: no document sees inputs or the state of
        another, and at 0 the RG-LRU begins anew. See temporal_conv1d and rg_lru.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; states are then [N, ...].

    Returns out [B, T, D] in x's dtype, the new conv_state in x's dtype and h_last [B, D] in float32 (float64 for
    float64), for the tokens that follow. Sums, gates' exponentials and the carry are float32 or better. Differentiable
    in x, y, all weights and both states, from all three results; the square root's derivative is clipped at 1000, as
    published. For its gradient the states h are kept, one tensor of x's size. T = 0 and B = 0 give empty outputs.

    Numerics: as temporal_conv1d and rg_lru; in bfloat16 and float16 the convolution's output is rounded before the
    gate products, h too where pieces run one by one, and gelu is float32 in fused forms. For the gradient h is kept
    in x's dtype. Error against float64, the worst variant on normal inputs, as norm of the error over norm of the
    result: float32 2e-07, bfloat16 9e-03, float16 8e-04; of gradients float32 4e-07, bfloat16 2e-02, float16 9e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    Source: arXiv 2402.19427, sections 2.3 and 2.4; resets and clipping after google-deepmind/recurrentgemma.
    """
    gates = checked("recurrent_block", weights)
    tensors = (x, y, conv_weight, conv_bias, *gates, conv_state, h0, _bridge.whole(segment_pos), cu_seqlens)
    with_h = torch.is_grad_enabled() and any([isinstance(t, Tensor) and t.requires_grad for t in tensors])
    out, new_conv_state, h_last, _ = _recurrent_block(*tensors, with_h)
    return out, new_conv_state, h_last
