"""The public operations that continue sequences whose states lie in a pool: serving, in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.functional._bridge import offsets, registered, whole
from griffin_kernels.functional._common import (
    RGLRUWeights,
    autocast,
    beside,
    checked,
    documented,
    gates_beside,
    in_dtype,
    one_of,
)
from griffin_kernels.ops import _activation

_linear_scan_extend: Callable[..., Tensor] = registered("linear_scan_extend")
_rg_lru_extend: Callable[..., Tensor] = registered("rg_lru_extend")
_temporal_conv1d_extend: Callable[..., Tensor] = registered("temporal_conv1d_extend")
_recurrent_block_extend: Callable[..., Tensor] = registered("recurrent_block_extend")


@documented((2e-7, 5e-3, 6e-4))
def rg_lru_extend(
    x: Tensor,
    weights: RGLRUWeights,
    states: Tensor,
    slots: Tensor,
    keep: Tensor,
    *,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """``rg_lru`` on sequences whose states are rows of a pool; ``states`` is changed in place.

        h_{-1} = states[slots[n]],   y = h = rg_lru(x, h0=h_{-1}),   states[keep[b, t]] = h_t

    Source: arXiv 2402.19427, section 2.4.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights.
    slots: int64 or int32 [N], the row of ``states`` that each sequence starts from; N is B, or the sequences that
        cu_seqlens packs. Negative: the sequence has no state, it is fresh. On a GPU the values of slots and keep are
        not checked, as that would wait for the device: there a row of P or more counts as negative.
    segment_pos: int64 or int32 [B, T], each token's position in its document. At 0 a document begins: the state before
        counts as 0 and sqrt(1 - a^2) as 1. Without it that is so at the first step of each sequence without a state.

    Returns y [B, T, D] in x's dtype. Gates' exponentials and states are float32 or better.

    Numerics: as rg_lru. A kept state is y before it is rounded.
    """
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    rows = whole(slots), whole(keep)
    return _rg_lru_extend(
        x, *checked("rg_lru_extend", weights, x), states, *rows, whole(segment_pos), offsets(cu_seqlens)
    )


@documented((2e-7, 9e-3, 8e-4))
def recurrent_block_extend(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weights: RGLRUWeights,
    conv_states: Tensor,
    states: Tensor,
    slots: Tensor,
    keep: Tensor,
    *,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """``recurrent_block`` on sequences whose states are rows of two pools; both are changed in place.

        u = temporal_conv1d(x, state=conv_states[slots[n]]),   h = rg_lru(u, h0=states[slots[n]]),   out = h * gelu(y)
        conv_states[keep[b, t]] = the last K-1 inputs,         states[keep[b, t]] = h_t

    Source: arXiv 2402.19427, sections 2.3 and 2.4.
    x, y: [B, T, D], the two branches, float32, bfloat16, float16 or float64, any strides. Weights of
        any float dtype.
    conv_states: [P, K-1, D] in x's dtype, oldest input first; zeros stand for inputs before the token's document.
    slots: int64 or int32 [N], the row of both pools that each sequence starts from; N is B, or the sequences that
        cu_seqlens packs. Negative: the sequence has no state, it is fresh, with zeros before it. On a GPU the values of
        slots and keep are not checked, as that would wait for the device: there a row of P or more counts as negative.
    segment_pos: int64 or int32 [B, T], each token's position in its document: no document sees inputs or the state of
        another, and at 0 the RG-LRU begins anew. Without it that is so at the first step of each sequence without a
        state.

    Returns out [B, T, D] in x's dtype. Sums, gates' exponentials and states are float32 or better.

    Numerics: as recurrent_block. A kept state is h before it is rounded.
    """
    if (dtype := autocast(x, conv_states)) is not None:
        x, y = in_dtype(dtype, x, y)
    parameters = (*beside(x, conv_weight, conv_bias), *checked("recurrent_block_extend", weights, x))
    rows = conv_states, states, whole(slots), whole(keep)
    return _recurrent_block_extend(x, y, *parameters, *rows, whole(segment_pos), offsets(cu_seqlens))


@documented((8e-8, 5e-3, 4e-4))
def temporal_conv1d_extend(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: Tensor,
    slots: Tensor,
    keep: Tensor,
    *,
    segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """``temporal_conv1d`` on sequences whose last inputs are rows of a pool; ``states`` is changed in place.

        y = temporal_conv1d(x, state=states[slots[n]]),   states[keep[b, t]] = (x_{t-K+2} .. x_t)

    Source: arXiv 2402.19427, section 2.3.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides. weight: [K, D], bias: [D] or None, of any float
        dtype.
    states: [P, K-1, D] in x's dtype, the pool, oldest input first; rows may lie apart, as in an engine's pages. Of
        longer ones pass the K-1 rows that count, a view; the others stay. What is kept of a token holds zeros in place
        of inputs before its document.
    slots: int64 or int32 [N], the row of ``states`` that each sequence starts from; N is B, or the sequences that
        cu_seqlens packs. Negative: the sequence starts from zeros. On a GPU the values of slots and keep are not
        checked, as that would wait for the device: there a row of P or more counts as negative.
    segment_pos: int64 or int32 [B, T], each token's position in its document: tap k > 0 counts only where
        k <= segment_pos[t]. Without it every sequence is one document.
    activation: None, "silu", or "gelu" in its tanh form, of the sum before it is rounded.

    Returns y [B, T, D] in x's dtype.

    Numerics: as temporal_conv1d. What is kept is a copy of inputs.
    """
    if (dtype := autocast(x, states)) is not None:
        (x,) = in_dtype(dtype, x)
    _activation.check(activation)
    rows = states, whole(slots), whole(keep)
    documents = whole(segment_pos), offsets(cu_seqlens), activation
    return _temporal_conv1d_extend(x, *beside(x, weight, bias), *rows, *documents)


@documented((2e-7, 5e-3, 3e-4))
def linear_scan_extend(
    x: Tensor,
    a: Tensor | None = None,
    states: Tensor | None = None,
    slots: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    log_a: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    convex: bool = False,
) -> Tensor:
    """``linear_scan`` on sequences whose states are rows of a pool; ``states`` is changed in place.

        h_{-1} = states[slots[n]],   h = linear_scan(x, a, h0=h_{-1}),   states[keep[b, t]] = h_t

    Source: RG-LRU's recurrence, arXiv 2402.19427, equation 4, without its gates.
    x: [B, T, D], float32, bfloat16, float16 or float64; any strides.
    a: [B, T, D], or the same gate at all steps: [D], [1, 1, D], or [B, 1, D] where rows differ. In x's dtype or
        float32, in which any other is used; of any sign and size.
    slots: int64 or int32 [N], the row of ``states`` that each sequence starts from; N is B, or the sequences that
        cu_seqlens packs. Negative: the sequence starts from zeros. On a GPU the values of slots and keep are not
        checked, as that would wait for the device: there a row of P or more counts as negative.
    log_a: in place of a, its logarithm: a = exp(log_a) in float32 (float64 for float64).
    convex: h_t = a_t * h_{t-1} + (1 - a_t) * x_t; 1 - a is -expm1(log_a) of log_a.

    Returns h [B, T, D] in x's dtype. Products, sums and the carry are float32 or better.

    Numerics: as linear_scan. A kept state is h before it is rounded.
    """
    gates = one_of("linear_scan_extend", a, log_a)
    if (dtype := autocast(x)) is not None:
        (x,) = in_dtype(dtype, x)
    gates = gates_beside(x, gates)
    rows = states, whole(slots), whole(keep)
    return _linear_scan_extend(x, gates, *rows, reset, offsets(cu_seqlens), a is None, convex)


def last_tokens(slots: Tensor, steps: int, cu_seqlens: Tensor | None = None) -> Tensor:
    """``keep`` for a call that keeps each sequence's last state, and no other: the usual prefill.

    slots: int64 or int32 [N], the row for each sequence; negative where none is kept. steps: T, all steps of the call.
    cu_seqlens: as in the call; a sequence without steps keeps nothing.

    Returns int64 [B, T] on the device of slots, whose values are not read on the host. B is N, or 1 with cu_seqlens.
    """
    rows = 1 if cu_seqlens is not None else slots.shape[0]
    # a column more, for sequences without steps
    keep = slots.new_full((rows, steps + 1), -1, dtype=torch.int64)
    if cu_seqlens is None:
        keep[:, steps - 1 if steps else 0] = slots.long()
        return keep[:, :steps].contiguous() if steps else keep[:, :0]
    offsets = cu_seqlens.to(slots.device, torch.int64)
    keep[0, torch.where(offsets.diff() > 0, offsets[1:] - 1, steps)] = slots.long()
    return keep[:, :steps].contiguous()
