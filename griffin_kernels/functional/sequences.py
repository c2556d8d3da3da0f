"""The public operations on whole sequences: differentiable operators over the tuned kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional._bridge import registered, wants_gradient, whole

_linear_scan: Callable[..., tuple[Tensor, Tensor]] = registered("linear_scan")
_block_diagonal_scan: Callable[..., tuple[Tensor, Tensor]] = registered("block_diagonal_scan")
_rg_lru: Callable[..., tuple[Tensor, Tensor]] = registered("rg_lru")
_temporal_conv1d: Callable[..., tuple[Tensor, Tensor]] = registered("temporal_conv1d")
_recurrent_block: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = registered("recurrent_block")
_local_attention: Callable[..., tuple[Tensor, Tensor]] = registered("local_attention")


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


def linear_scan(
    x: Tensor,
    a: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gated linear recurrence h_t = a_t * h_{t-1} + x_t, per channel.

    x, a: [B, T, D], float32, bfloat16, float16 or float64, the same dtype; any strides. a may have any sign and size;
        forms that cut time are slower where |a| > 1, since they then go step by step.
    h0: [B, D], the state before the first step, in x's dtype or float32; zeros if None.
    reset: bool [B, T]; where True the state before that step counts as 0.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; h0 and h_last are then [N, D].
        On a GPU its values are not checked: that would wait for the device.
    reverse: run from the last step to the first; h0 enters at the end, h_last is the state at the start.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). The carry is
    kept in float32 or better throughout. Differentiable in x, a and h0, from h and h_last; gradients of a use h as
    returned, rounded to its dtype. T = 0 and B = 0 give empty outputs (h_last is then h0).

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are; the gradient of a multiplies by h as
    returned. Error against float64, the worst variant on normal inputs, as norm of the error over norm of the
    result: float32 2e-07, bfloat16 5e-03, float16 3e-04; of gradients float32 2e-07, bfloat16 5e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    """
    return _linear_scan(x, a, h0, reset, cu_seqlens, reverse)


def block_diagonal_scan(
    x: Tensor,
    a: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The linear recurrence h_t = A_t h_{t-1} + x_t with A_t made of H blocks of n x n on its diagonal.

    x: [B, T, D] with D = H n, float32, bfloat16, float16 or float64; any strides. Channel i n + j is entry j of
        block i.
    a: [B, T, H, n, n] in x's dtype. The state of a block is a column vector: h_j = sum_k a[..., j, k] h_k + x_j.
        Kernels that cut time multiply up to 256 matrices of a chunk with each other: products that leave float32 lose
        it where the state does not. Matrices that shrink vectors, or keep their length, are safe.
        n = 2, 4, 8 and 16 have kernels of their own; n = 1 runs linear_scan; any other n works.
    h0: [B, D], the state before the first step, in x's dtype or float32; zeros if None.
    reset: bool [B, T]; where True the state before that step counts as 0.
    cu_seqlens: int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one; h0 and h_last are then [N, D].
        On a GPU its values are not checked: that would wait for the device.
    reverse: run from the last step to the first; h0 enters at the end, h_last is the state at the start.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Differentiable
    in x, a and h0, from h and h_last. T = 0 and B = 0 give empty outputs (h_last is then h0).

    Numerics: products, sums over k and the carry are float32 (float64 for float64 data); chunked kernels keep
    products of matrices in it too. bfloat16 and float16 are rounded once, when h is written, and dx and da when
    they are; the gradient of a multiplies by h as returned. Nothing keeps products of A from growing: it is for the
    caller to keep singular values at or below 1. Error against float64, the worst variant on normal inputs, as norm
    of the error over norm of the result: float32 4e-07, bfloat16 5e-03, float16 3e-04; of gradients float32 4e-07,
    bfloat16 5e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor) and a.shape == (*x.shape, 1, 1):
        return linear_scan(x, a[..., 0, 0], h0=h0, reset=reset, cu_seqlens=cu_seqlens, reverse=reverse)
    return _block_diagonal_scan(x, a, h0, reset, cu_seqlens, reverse)


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
    return _rg_lru(x, *checked("rg_lru", weights), h0, whole(segment_pos), cu_seqlens)


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
    return _temporal_conv1d(x, weight, bias, state, whole(segment_pos), cu_seqlens)


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
    tensors = (x, y, conv_weight, conv_bias, *gates, conv_state, h0, whole(segment_pos), cu_seqlens)
    out, new_conv_state, h_last, _ = _recurrent_block(*tensors, wants_gradient(tensors))
    return out, new_conv_state, h_last


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
    training = wants_gradient((q, k, v))
    return _local_attention(q, k, v, whole(segment_pos), cu_seqlens, window, softcap, scale, training)[0]
