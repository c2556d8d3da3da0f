"""The public operations of a recurrent block: RG-LRU and convolution, on sequences and on one token."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from griffin_kernels.functional._bridge import offsets, registered, wants_gradient, whole
from griffin_kernels.functional._common import RGLRUWeights, autocast, beside, checked, documented, in_dtype
from griffin_kernels.ops import _activation
from griffin_kernels.ops.rg_lru.op import DECAY

_rg_lru: Callable[..., tuple[Tensor, Tensor]] = registered("rg_lru")
_rg_lru_gated: Callable[..., tuple[Tensor, Tensor]] = registered("rg_lru_gated")
_temporal_conv1d: Callable[..., tuple[Tensor, Tensor]] = registered("temporal_conv1d")
_recurrent_block: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = registered("recurrent_block")
_rg_lru_step: Callable[..., Tensor] = registered("rg_lru_step")
_temporal_conv1d_step: Callable[..., Tensor] = registered("temporal_conv1d_step")
_recurrent_block_step: Callable[..., Tensor] = registered("recurrent_block_step")


@documented((2e-7, 5e-3, 6e-4), (4e-7, 8e-3, 2e-3))
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

    Source: arXiv 2402.19427, section 2.4; resets and clipping after google-deepmind/recurrentgemma.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights.
    h0: [B, D], the state before the first step, in x's dtype or float32; None for a fresh sequence.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Where it is 0 a document begins: the
        earlier state counts as 0 and sqrt(1 - a^2) as 1. Without it nothing begins after the first step, and that does
        if h0 is None: as in the published models, a sequence is fresh unless a state is given that it continues. So it
        is with each of those that are packed.

    Returns y = h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Gates'
    exponentials and the carry are kept in float32 or better. Differentiable in x, all weights and h0, from y and
    h_last; the square root's derivative is clipped at 1000, as published.

    Numerics: gate products are summed in float32; unfused forms round the gates' arguments to x's dtype, fused ones
    do not. Sigmoids, a, 1 - a^2 (in a form that does not cancel near a = 1), i x and the carry are float32 (float64
    for float64 data); y is rounded once. In the gradient, what reaches the gates is rounded to x's dtype before its
    products with weights and x, whose sums are float32; y stands for h as returned.
    """
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    return _rg_lru(x, *checked("rg_lru", weights, x), h0, whole(segment_pos), offsets(cu_seqlens))


@documented((2e-7, 5e-3, 4e-4), (7e-7, 5e-3, 4e-4))
def rg_lru_gated(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    *,
    c: float = DECAY,
    h0: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The RG-LRU from its gates' pre-activations: what ``rg_lru`` computes after its gate products.

        i = sigmoid(input_gate),  r = sigmoid(recurrence_gate),  log a = -c softplus(a_param) r
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t

    For gates of dense layers, or made of something else than x. ``rg_lru`` is for block-diagonal gates of x: it
    multiplies and scans in one pass where it can.
    Source: arXiv 2402.19427, section 2.4.
    x, input_gate, recurrence_gate: [B, T, D], float32, bfloat16, float16 or float64, the same dtype; any strides, so
        that both gates may be halves of one layer's output. a_param: [D], of any float dtype, used in float32.
    c: above 0; 8 in the paper.
    h0: [B, D], the state before the first step, in x's dtype or float32; None for a fresh sequence.
    segment_pos: int64 or int32 [B, T], each token's position in its document: at 0 a document begins. See rg_lru.

    Returns y = h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64).
    Differentiable in x, both gates, a_param and h0, from y and h_last; the square root's derivative is clipped at 1000,
    as published.

    Numerics: everything between inputs and results is float32 (float64 for float64 data), 1 - a^2 in a form that does
    not cancel near a = 1; y is rounded once, and so are the gradients. That of a_param is summed in float32 in an order
    that does not vary from run to run; y stands for h as returned.
    """
    if (dtype := autocast(x)) is not None:
        x, input_gate, recurrence_gate = in_dtype(dtype, x, input_gate, recurrence_gate)
    (parameter,) = beside(x, a_param)
    return _rg_lru_gated(x, input_gate, recurrence_gate, parameter, h0, whole(segment_pos), offsets(cu_seqlens), c)


@documented((8e-8, 5e-3, 4e-4), (3e-7, 5e-3, 5e-4))
def temporal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The causal convolution over time, one filter per channel, that precedes the RG-LRU in Griffin and Hawk.

        y_t = act(bias + sum_k weight[K-1-k] x_{t-k}) + residual_t,   k = 0 .. K-1

    Source: arXiv 2402.19427, section 2.3; orientation and document mask after google-deepmind/recurrentgemma.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides.
    weight: [K, D], K >= 1 taps; the last row multiplies the current input. bias: [D], nothing if None. Either of any
        float dtype.
    state: [B, K-1, D] in x's dtype, the inputs before x, oldest first; zeros if None. Of a longer one pass the last K-1
        rows, ``longer[:, longer.shape[1] - (K - 1):]``, which is a view: any strides will do.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Tap k > 0 counts only where
        k <= segment_pos[t], in the state too: no document reads another. Without it, x is one document that goes on
        from state. segment_positions makes it of document numbers.
    activation: None, "silu", or "gelu" in its tanh form, of the sum before it is rounded. Sibling models have one here,
        Griffin and Hawk none.
    residual: [B, T, D] in x's dtype, any strides, added to y before it is rounded, after the activation; nothing if
        None. As in flash-linear-attention's ShortConvolution.

    Returns y [B, T, D] and the new state [B, K-1, D] for the tokens that follow, both in x's dtype: the last K-1 inputs
    of (state, x), with zeros in place of those before the last token's document, so that a caller may decode on without
    positions. Differentiable in x, weight, bias, state and residual, from y and the new state.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data), y is rounded once; so are the
    gradients, whose sums over batch and time are float32. An activation is float32 too; its gradient does the sums
    again, and keeps nothing for it.
    """
    if (dtype := autocast(x)) is not None:
        x, state, residual = in_dtype(dtype, x, state, residual)
    _activation.check(activation)
    documents = whole(segment_pos), offsets(cu_seqlens)
    return _temporal_conv1d(x, *beside(x, weight, bias), state, *documents, residual, activation)


@documented((2e-7, 9e-3, 8e-4), (4e-7, 2e-2, 9e-4))
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

    Source: arXiv 2402.19427, sections 2.3 and 2.4; resets and clipping after google-deepmind/recurrentgemma.
    x, y: [B, T, D], the two branches, float32, bfloat16, float16 or float64, any strides. Weights of
        any float dtype.
    conv_state: [B, K-1, D] in x's dtype, the inputs before x, oldest first; zeros if None. h0: [B, D] in x's dtype or
        float32, the state before the first step; None for a fresh sequence, with which the RG-LRU begins.
    segment_pos: int64 or int32 [B, T], each token's position in its document: no document sees inputs or the state of
        another, and at 0 the RG-LRU begins anew. See temporal_conv1d and rg_lru.

    Returns out [B, T, D] in x's dtype, the new conv_state in x's dtype and h_last [B, D] in float32 (float64 for
    float64), for the tokens that follow. Sums, gates' exponentials and the carry are float32 or better. Differentiable
    in x, y, all weights and both states, from all three results; the square root's derivative is clipped at 1000, as
    published. For its gradient the states h are kept, one tensor of x's size and dtype.

    Numerics: as temporal_conv1d and rg_lru; in bfloat16 and float16 the convolution's output is rounded before the
    gate products, h too where pieces run one by one, and gelu is float32 in fused forms.
    """
    if (dtype := autocast(x)) is not None:
        x, y, conv_state = in_dtype(dtype, x, y, conv_state)
    parameters = (*beside(x, conv_weight, conv_bias), *checked("recurrent_block", weights, x))
    tensors = (x, y, *parameters, conv_state, h0, whole(segment_pos), offsets(cu_seqlens))
    return _recurrent_block(*tensors, wants_gradient(tensors))[:3]


@documented((9e-8, 4e-3, 3e-4))
def rg_lru_step(
    x: Tensor,
    weights: RGLRUWeights,
    h: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
    dst_slots: Tensor | None = None,
    pad_slot: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """One token of ``rg_lru``; the state ``h`` is changed in place.

    Source: arXiv 2402.19427, section 2.4.
    x: [B, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights.
    h: [P, D], float32 (float64 for float64).
    positions: int64 or int32 [B], each token's position in its document. At 0 a document begins: h counts as 0 and
        sqrt(1 - a^2) as 1. None: every document goes on.

    Returns y [B, D], the new states rounded to x's dtype. Gates' exponentials and the state are float32 or better.

    Numerics: gate products are summed in float32; eager code rounds the gates' arguments to x's dtype, fused
    kernels do not. All else, h included, is float32 (float64 for float64 data); y is h rounded once.
    """
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    rows = whole(positions), whole(slots), whole(dst_slots), pad_slot
    return _rg_lru_step(x, *checked("rg_lru_step", weights, x), h, *rows, out)


@documented((7e-8, 2e-3, 4e-4))
def temporal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
    dst_slots: Tensor | None = None,
    pad_slot: int = -1,
    activation: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One token of ``temporal_conv1d``; the last K-1 inputs are kept in ``state``, which is changed in place.

    Source: arXiv 2402.19427, section 2.3.
    x: [B, D], float32, bfloat16, float16 or float64; any strides.
    weight: [K, D], bias: [D] or None, of any float dtype.
    state: [P, K-1, D] in x's dtype, the inputs before x, oldest first. Of a longer one pass the last K-1 rows, a view;
        the others stay. compat.causal_conv1d.causal_conv1d_update shifts all, and takes rings.
    activation: None, "silu", or "gelu" in its tanh form, of the sum before it is rounded.
    positions: int64 or int32 [B], each token's position in its document. Tap k > 0 counts only where k <= position, and
        inputs of an earlier document become zeros in the state. None: every document goes on.

    Returns y [B, D] in x's dtype.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data); y is rounded once.
    """
    if (dtype := autocast(x, state)) is not None:
        (x,) = in_dtype(dtype, x)
    rows = whole(positions), whole(slots), whole(dst_slots), pad_slot, activation
    return _temporal_conv1d_step(x, *beside(x, weight, bias), state, *rows, out)


@documented((1e-7, 5e-3, 4e-4))
def recurrent_block_step(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weights: RGLRUWeights,
    conv_state: Tensor,
    h: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
    dst_slots: Tensor | None = None,
    pad_slot: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """One token of ``recurrent_block``: convolution, RG-LRU and gelu gate; both states are changed in place.

        out = rg_lru_step(temporal_conv1d_step(x)) * gelu(y)

    Source: arXiv 2402.19427, sections 2.3 and 2.4.
    x, y: [B, D], the two branches, float32, bfloat16, float16 or float64, any strides. Weights of
        any float dtype.
    conv_state: [P, K-1, D] in x's dtype, oldest input first. h: [P, D], float32 (float64 for float64).
    positions: int64 or int32 [B], each token's position in its document: 0 begins a new one, which reads neither state.
        None: every document goes on.

    Returns out [B, D] in x's dtype. Sums, gates' exponentials and the state are float32 or better.

    Numerics: as temporal_conv1d_step and rg_lru_step; the convolution's output may be rounded to x's dtype before
    the gate products. gelu is float32 in fused kernels; out is rounded once.
    """
    if (dtype := autocast(x, conv_state)) is not None:
        x, y = in_dtype(dtype, x, y)
    parameters = (*beside(x, conv_weight, conv_bias), *checked("recurrent_block_step", weights, x))
    rows = whole(positions), whole(slots), whole(dst_slots), pad_slot
    return _recurrent_block_step(x, y, *parameters, conv_state, h, *rows, out)
