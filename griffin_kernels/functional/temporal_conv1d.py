"""The public temporal_conv1d: a differentiable operator over the tuned kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.functional import _bridge

_temporal_conv1d = _bridge.Differentiable("temporal_conv1d")


def temporal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    state: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The causal convolution over time, one filter per channel, that precedes the RG-LRU in Griffin and Hawk.

        y_t = bias + sum_k weight[K-1-k] x_{t-k},   k = 0 .. K-1

    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. All other tensors but segment_pos: same dtype.
    weight: [K, D], K >= 1 taps; the last row multiplies the current input. bias: [D].
    state: [B, K-1, D], the inputs before x, oldest first; zeros if None.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Tap k > 0 counts only where
        k <= segment_pos[t], in the state too: no document reads another. Without it, x is one document that goes on
        from state.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one, none of which reads another; the
        states are then [N, K-1, D]. On a GPU its values are not checked: that would wait for the device.

    Returns y [B, T, D] and the new state [B, K-1, D] for the tokens that follow, both in x's dtype: the last K-1 inputs
    of (state, x), with zeros in place of those before the last token's document, so that a caller may decode on without
    positions. Sums are kept in float32 or better. Differentiable in x, weight, bias and state, from y and the new
    state. T = 0 and B = 0 give empty outputs (the state comes back unchanged).

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data), y is rounded once; so are the
    gradients, whose sums over batch and time are float32. Error against float64, the worst variant on normal
    inputs, as norm of the error over norm of the result: float32 7e-08, bfloat16 5e-03, float16 3e-04; of gradients
    float32 3e-07, bfloat16 5e-03, float16 5e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    Source: arXiv 2402.19427, section 2.3; orientation and document mask after google-deepmind/recurrentgemma.
    """
    if isinstance(segment_pos, Tensor) and segment_pos.dtype == torch.int32:
        segment_pos = segment_pos.long()
    outputs: tuple[Tensor, Tensor] = _temporal_conv1d(x, weight, bias, state, segment_pos, cu_seqlens)
    return outputs
