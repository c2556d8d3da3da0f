"""The public rg_lru: a differentiable operator over the tuned kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional import _bridge


class RGLRUWeights(NamedTuple):
    """Parameters of an RG-LRU with H gate blocks of width n = D / H, all in the dtype of x.

    a_param: [D], minus the paper's Lambda: log a = -8 softplus(a_param) r.
    input_gate_weight, recurrence_gate_weight: [H, n, n], y_hj = sum_i x_hi W_hij. Their biases: [H, n].
    """

    a_param: Tensor
    input_gate_weight: Tensor
    recurrence_gate_weight: Tensor
    input_gate_bias: Tensor
    recurrence_gate_bias: Tensor


def checked(op_name: str, weights: RGLRUWeights) -> tuple[Tensor, ...]:
    """The five parameters in the order of the ops' inputs; ArgumentError where they are not RGLRUWeights."""
    if not isinstance(weights, RGLRUWeights):
        raise errors.ArgumentError(f"{op_name}: weights is a {type(weights).__name__}, expected RGLRUWeights")
    return (
        weights.a_param,
        weights.input_gate_weight,
        weights.input_gate_bias,
        weights.recurrence_gate_weight,
        weights.recurrence_gate_bias,
    )


_rg_lru = _bridge.Differentiable("rg_lru")


def rg_lru(
    x: Tensor,
    weights: RGLRUWeights,
    *,
    h0: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The real-gated linear recurrent unit of Griffin and Hawk.

        i = sigmoid(x W_i + b_i),  r = sigmoid(x W_r + b_r),  log a = -8 softplus(a_param) r
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights in the same dtype.
    h0: [B, D], the state before the first step, in x's dtype or float32; None for a fresh sequence.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Where it is 0 a document begins: the
        earlier state counts as 0 and sqrt(1 - a^2) as 1. Without it nothing begins after the first step, and that does
        if h0 is None: as in the published models, a sequence is fresh unless a state is given that it continues.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; h0 and h_last are then [N, D].
        No state crosses into the next sequence, and each is fresh or continues as said above. On a GPU its values are
        not checked: that would wait for the device.

    Returns y = h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Gates'
    exponentials and the carry are kept in float32 or better. Differentiable in x, all weights and h0, from y and
    h_last; the square root's derivative is clipped at 1000, as published. T = 0 and B = 0 give empty outputs.

    Numerics: gate products are summed in float32; unfused forms round the gates' arguments to x's dtype, fused ones
    do not. Sigmoids, a, 1 - a^2 (in a form that does not cancel near a = 1), i x and the carry are float32 (float64
    for float64 data); y is rounded once. In the gradient, what reaches the gates is rounded to x's dtype before its
    products with weights and x, whose sums are float32; y stands for h as returned. Error against float64, the
    worst variant on normal inputs, as norm of the error over norm of the result: float32 2e-07, bfloat16 5e-03,
    float16 6e-04; of gradients float32 4e-07, bfloat16 8e-03, float16 2e-03.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    Source: arXiv 2402.19427, section 2.4; resets and clipping after google-deepmind/recurrentgemma.
    """
    outputs: tuple[Tensor, Tensor] = _rg_lru(x, *checked("rg_lru", weights), h0, _bridge.whole(segment_pos), cu_seqlens)
    return outputs
