"""The public operations. Importing this registers ``torch.ops.griffin_kernels.*``, all of them.

Those on whole sequences are differentiable; those on one token of decoding change states in place.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import accumulator
from griffin_kernels.functional._bridge import registered, wants_gradient, whole

_linear_scan: Callable[..., tuple[Tensor, Tensor]] = registered("linear_scan")
_block_diagonal_scan: Callable[..., tuple[Tensor, Tensor]] = registered("block_diagonal_scan")
_rg_lru: Callable[..., tuple[Tensor, Tensor]] = registered("rg_lru")
_temporal_conv1d: Callable[..., tuple[Tensor, Tensor]] = registered("temporal_conv1d")
_recurrent_block: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = registered("recurrent_block")
_local_attention: Callable[..., tuple[Tensor, Tensor]] = registered("local_attention")
_rg_lru_step: Callable[..., Tensor] = registered("rg_lru_step")
_temporal_conv1d_step: Callable[..., Tensor] = registered("temporal_conv1d_step")
_recurrent_block_step: Callable[..., Tensor] = registered("recurrent_block_step")
_local_attention_step: Callable[..., Tensor] = registered("local_attention_step")

_SHARED = {
    "h0": "[B, D], the state before the first step, in x's dtype or float32; zeros if None.",
    "reset": "bool [B, T]; where True the state before that step counts as 0.",
    "reverse": "run from the last step to the first; h0 enters at the end, h_last is the state at the start.",
    "conv_weight": "[K, D]. conv_bias: [D]. weights: RGLRUWeights.",
    "softcap": "scores become softcap * tanh(scores / softcap). scale: of the scores; d ** -0.5 if None.",
    "cu_seqlens": "int32 [N+1], offsets 0 .. T of N sequences packed into a batch of one, none of which reads another; "
    "states then have N rows in place of B. On a GPU its values are not checked: that would wait for the device.",
    "slots": "int64 or int32 [B], which of a state's P rows belongs to which row of the batch, each once at most; P = B"
    " if None. A negative one marks a row that only pads: no state is touched and its output is 0. On a GPU values are "
    "not checked, as that would wait for the device: there a slot of P or more pads too.",
}
"""What arguments are in every function that has them and does not say it itself."""

_EMPTY = "T = 0 and B = 0 give empty outputs, and the states come back as they were given."
_EMPTY_STEP = """B = 0 gives an empty output. It reads no value on the host and allocates nothing of varying size, so
that it can be captured in a CUDA graph; works under torch.compile."""
_NO_GRADIENT = """, and leaves states as they were. It has no gradient: in grad mode, tensors that require one raise
ArgumentError"""

_Function = TypeVar("_Function", bound=Callable[..., object])


def _documented(*measured: tuple[float, float, float]) -> Callable[[_Function], _Function]:
    """Completes a docstring by what many functions share: arguments before what it returns, the rest at the end.

    measured: errors of results and, where there are any, of gradients, in float32, bfloat16 and float16.
    """

    def completed(function: _Function) -> _Function:
        steps = len(measured) == 1
        own, _, returns = (inspect.getdoc(function) or "").partition("\n\nReturns ")
        shared = [name for name in inspect.signature(function).parameters if name in _SHARED and f"{name}:" not in own]
        by_dtype = ["float32 {:.0e}, bfloat16 {:.0e}, float16 {:.0e}".format(*kind) for kind in measured]
        common = (
            _EMPTY_STEP if steps else _EMPTY,
            "Error against float64, the worst variant on normal inputs, as norm of the error over norm of the result: "
            f"{'; of gradients '.join(by_dtype)}.",
            "Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault"
            f"{_NO_GRADIENT if steps else ''}.",
        )
        arguments = [textwrap.fill(f"{name}: {_SHARED[name]}", 116, subsequent_indent=" " * 4) for name in shared]
        wrapped = "\n\n".join(textwrap.fill(text, 116) for text in common)
        function.__doc__ = "\n".join([own, *arguments]) + f"\n\nReturns {returns}\n\n{wrapped}"
        return function

    return completed


class RGLRUWeights(NamedTuple):
    """Parameters of an RG-LRU with H gate blocks of width n = D / H, of any float dtype, each of its own.

    Matrices are multiplied in x's dtype, to which they are rounded. The others are used as they are: in float32.
    a_param: [D], minus the paper's Lambda: log a = -8 softplus(a_param) r.
    input_gate_weight, recurrence_gate_weight: [H, n, n], y_hj = sum_i x_hi W_hij. Their biases: [H, n].
    """

    a_param: Tensor
    input_gate_weight: Tensor
    recurrence_gate_weight: Tensor
    input_gate_bias: Tensor
    recurrence_gate_bias: Tensor


def _checked(op_name: str, weights: RGLRUWeights, x: Any) -> tuple[Any, ...]:
    """The five parameters in the order of the ops' inputs, in dtypes that go with x's.

    ArgumentError where they are not RGLRUWeights.
    """
    if not isinstance(weights, RGLRUWeights):
        raise errors.ArgumentError(f"{op_name}: weights is a {type(weights).__name__}, expected RGLRUWeights")
    a_param, input_weight, recurrence_weight, input_bias, recurrence_bias = weights
    try:
        # the usual case, which should cost no more than a look
        alike = x.dtype is a_param.dtype is input_weight.dtype is recurrence_weight.dtype is input_bias.dtype
        alike = alike and x.dtype is recurrence_bias.dtype
    except AttributeError:  # no tensor: for the op's own checks
        alike = True
    if not alike:
        input_weight, recurrence_weight = _in(x.dtype, input_weight, recurrence_weight)
        a_param, input_bias, recurrence_bias = _beside(x, a_param, input_bias, recurrence_bias)
    return a_param, input_weight, input_bias, recurrence_weight, recurrence_bias


def _in(dtype: torch.dtype, *tensors: Any) -> tuple[Any, ...]:
    """Tensors of floats in a dtype."""
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in tensors
    )


def _beside(x: Any, *parameters: Any) -> tuple[Any, ...]:
    """Parameters that an op takes beside data like x: in x's dtype, or else in its accumulator's."""
    try:
        for parameter in parameters:
            if parameter.dtype is not x.dtype:
                break
        else:
            return parameters
    except AttributeError:
        return parameters
    wide = accumulator(x.dtype)
    return tuple(p if getattr(p, "dtype", wide) in (x.dtype, wide) else _in(wide, p)[0] for p in parameters)


def _autocast(x: Any, kept: Any = None) -> torch.dtype | None:
    """What data like x is cast to under torch.autocast, as nn.Linear casts it; None where it stays as it is.

    kept: a step's state of data, whose dtype the data then gets.
    """
    if not torch._C._is_any_autocast_enabled() or not isinstance(x, Tensor) or x.dtype == torch.float64:
        return None
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return kept.dtype if isinstance(kept, Tensor) and kept.is_floating_point() else torch.get_autocast_dtype(kind)


@_documented((2e-7, 5e-3, 3e-4), (2e-7, 5e-3, 3e-4))
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

    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    x, a: [B, T, D], float32, bfloat16, float16 or float64, the same dtype; any strides. a may have any sign and size;
        forms that cut time are slower where |a| > 1, since they then go step by step.

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). The carry is
    kept in float32 or better throughout. Differentiable in x, a and h0, from h and h_last; gradients of a use h as
    returned, rounded to its dtype.

    Numerics: products, sums and the carry are float32 (float64 for float64 data) in every variant. bfloat16 and
    float16 are rounded once, when h is written, and dx and da when they are.
    """
    return _linear_scan(x, a, h0, reset, cu_seqlens, reverse)


@_documented((4e-7, 5e-3, 3e-4), (4e-7, 5e-3, 3e-4))
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

    Returns h [B, T, D] in x's dtype and h_last [B, D], the last state in float32 (float64 for float64). Differentiable
    in x, a and h0, from h and h_last.

    Numerics: products, sums over k and the carry are float32 (float64 for float64 data); chunked kernels keep
    products of matrices in it too. bfloat16 and float16 are rounded once, when h is written, and dx and da when
    they are; the gradient of a multiplies by h as returned. Nothing keeps products of A from growing: it is for the
    caller to keep singular values at or below 1.
    """
    if isinstance(x, Tensor) and isinstance(a, Tensor) and a.shape == (*x.shape, 1, 1):
        return linear_scan(x, a[..., 0, 0], h0=h0, reset=reset, cu_seqlens=cu_seqlens, reverse=reverse)
    return _block_diagonal_scan(x, a, h0, reset, cu_seqlens, reverse)


@_documented((2e-7, 5e-3, 6e-4), (4e-7, 8e-3, 2e-3))
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
    if (dtype := _autocast(x)) is not None:
        (x,) = _in(dtype, x)
    return _rg_lru(x, *_checked("rg_lru", weights, x), h0, whole(segment_pos), cu_seqlens)


@_documented((7e-8, 5e-3, 3e-4), (3e-7, 5e-3, 5e-4))
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

    Source: arXiv 2402.19427, section 2.3; orientation and document mask after google-deepmind/recurrentgemma.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides.
    weight: [K, D], K >= 1 taps; the last row multiplies the current input. bias: [D]. Either of any float dtype.
    state: [B, K-1, D] in x's dtype, the inputs before x, oldest first; zeros if None.
    segment_pos: int64 or int32 [B, T], each token's position in its document. Tap k > 0 counts only where
        k <= segment_pos[t], in the state too: no document reads another. Without it, x is one document that goes on
        from state.

    Returns y [B, T, D] and the new state [B, K-1, D] for the tokens that follow, both in x's dtype: the last K-1 inputs
    of (state, x), with zeros in place of those before the last token's document, so that a caller may decode on without
    positions. Differentiable in x, weight, bias and state, from y and the new state.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data), y is rounded once; so are the
    gradients, whose sums over batch and time are float32.
    """
    if (dtype := _autocast(x)) is not None:
        x, state = _in(dtype, x, state)
    return _temporal_conv1d(x, *_beside(x, weight, bias), state, whole(segment_pos), cu_seqlens)


@_documented((2e-7, 9e-3, 8e-4), (4e-7, 2e-2, 9e-4))
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
    if (dtype := _autocast(x)) is not None:
        x, y, conv_state = _in(dtype, x, y, conv_state)
    parameters = (*_beside(x, conv_weight, conv_bias), *_checked("recurrent_block", weights, x))
    tensors = (x, y, *parameters, conv_state, h0, whole(segment_pos), cu_seqlens)
    return _recurrent_block(*tensors, wants_gradient(tensors))[:3]


@_documented((3e-7, 6e-3, 4e-4), (6e-7, 9e-3, 6e-4))
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
        earlier calls (the last window - 1 are enough) before the new ones. Of packed sequences, S must be T.
    window: a query sees its own key and the window - 1 before it. DeepMind's published mask lets one more through.
    segment_pos: int64 or int32 [B, T], each query's position in its document, rising by one from token to token. A
        query at position p sees at most the last p + 1 keys: none from before its document, kept keys included.
        Without it, all S keys are of one document.

    Returns [B, T, Hq, d] in q's dtype. Differentiable once in q, k and v.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data). In bfloat16 and float16 most variants
    round softmax's weights before their product with v, and in the gradient those of the scores before theirs with
    q and k, as matrix units take them; out and gradients are rounded once.
    """
    if (dtype := _autocast(q)) is not None:
        q, k, v = _in(dtype, q, k, v)
    training = wants_gradient((q, k, v))
    return _local_attention(q, k, v, whole(segment_pos), cu_seqlens, window, softcap, scale, training)[0]


@_documented((9e-8, 4e-3, 3e-4))
def rg_lru_step(
    x: Tensor, weights: RGLRUWeights, h: Tensor, *, positions: Tensor | None = None, slots: Tensor | None = None
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
    if (dtype := _autocast(x)) is not None:
        (x,) = _in(dtype, x)
    return _rg_lru_step(x, *_checked("rg_lru_step", weights, x), h, whole(positions), whole(slots))


@_documented((7e-8, 2e-3, 4e-4))
def temporal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    state: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token of ``temporal_conv1d``; the last K-1 inputs are kept in ``state``, which is changed in place.

    Source: arXiv 2402.19427, section 2.3.
    x: [B, D], float32, bfloat16, float16 or float64; any strides.
    weight: [K, D], bias: [D], of any float dtype. state: [P, K-1, D] in x's dtype, the inputs before x, oldest first.
    positions: int64 or int32 [B], each token's position in its document. Tap k > 0 counts only where k <= position, and
        inputs of an earlier document become zeros in the state. None: every document goes on.

    Returns y [B, D] in x's dtype.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data); y is rounded once.
    """
    if (dtype := _autocast(x, state)) is not None:
        (x,) = _in(dtype, x)
    return _temporal_conv1d_step(x, *_beside(x, weight, bias), state, whole(positions), whole(slots))


@_documented((1e-7, 5e-3, 4e-4))
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
    if (dtype := _autocast(x, conv_state)) is not None:
        x, y = _in(dtype, x, y)
    parameters = (*_beside(x, conv_weight, conv_bias), *_checked("recurrent_block_step", weights, x))
    return _recurrent_block_step(x, y, *parameters, conv_state, h, whole(positions), whole(slots))


@_documented((4e-7, 5e-3, 4e-4))
def local_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    *,
    slots: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of one new token per row to the last W keys of its document, kept in a ring. Changes the ring in place.

    The new key and value are written to slot ``positions % W`` of each row, over those that have just left the window;
    then the token attends to W keys, its own included, as ``local_attention`` with ``window=W`` gives it.

    q: [B, Hq, d]; k, v: [B, Hkv, d], the new token's, Hq a multiple of Hkv; float32, bfloat16, float16 or float64, the
        same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
    k_cache, v_cache: [P, W, Hkv, d] in that dtype, any strides; W is the window. The key of position p is in slot p % W
        of its row. Slots above a row's position are not seen; they may hold anything finite (zeros, an earlier
        document).
    positions: int64 or int32 [B], each token's position in its document, 0 or above: 0 begins a new document.

    Returns [B, Hq, d] in q's dtype.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data); bfloat16 and float16 may round
    softmax's weights before their product with v, and round out once.
    """
    if (dtype := _autocast(q, k_cache)) is not None:
        q, k, v = _in(dtype, q, k, v)
    return _local_attention_step(q, k, v, k_cache, v_cache, whole(positions), whole(slots), softcap, scale)
