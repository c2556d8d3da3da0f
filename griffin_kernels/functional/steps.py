"""The public operations on one token of decoding: the tuned kernels, which change states in place."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from griffin_kernels.functional._bridge import registered, whole
from griffin_kernels.functional.sequences import RGLRUWeights, checked

_rg_lru_step: Callable[..., Tensor] = registered("rg_lru_step")
_temporal_conv1d_step: Callable[..., Tensor] = registered("temporal_conv1d_step")
_recurrent_block_step: Callable[..., Tensor] = registered("recurrent_block_step")
_local_attention_step: Callable[..., Tensor] = registered("local_attention_step")


def rg_lru_step(
    x: Tensor,
    weights: RGLRUWeights,
    h: Tensor,
    *,
    positions: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """One token of ``rg_lru``; the state ``h`` is changed in place.

    x: [B, D], float32, bfloat16, float16 or float64; any strides. weights: RGLRUWeights in the same dtype.
    h: [P, D], float32 (float64 for float64); P = B without slots.
    positions: int64 or int32 [B], each token's position in its document. At 0 a document begins: h counts as 0 and
        sqrt(1 - a^2) as 1. None: every document goes on.
    slots: int64 or int32 [B], which row of h belongs to which row of the batch, each at most once; a negative one marks
        a row that only pads: no state is touched and its output is 0. On a GPU values are not checked, as that would
        wait for the device: there a slot of P or more pads too.

    Returns y [B, D], the new states rounded to x's dtype. Gates' exponentials and the state are float32 or better.
    Reads no value on the host and allocates nothing of varying size, so that it can be captured in a CUDA graph; works
    under torch.compile. B = 0 gives an empty output.

    Numerics: gate products are summed in float32; eager code rounds the gates' arguments to x's dtype, fused
    kernels do not. All else, h included, is float32 (float64 for float64 data); y is h rounded once. Error against
    float64, the worst variant on normal inputs, as norm of the error over norm of the result: float32 9e-08,
    bfloat16 4e-03, float16 3e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves h as it
    was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, section 2.4.
    """
    return _rg_lru_step(x, *checked("rg_lru_step", weights), h, whole(positions), whole(slots))


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

    x: [B, D], float32, bfloat16, float16 or float64; any strides. All other tensors but indices: same dtype.
    weight: [K, D]. bias: [D]. state: [P, K-1, D], the inputs before x, oldest first; P = B without slots.
    positions: int64 or int32 [B], each token's position in its document. Tap k > 0 counts only where k <= position, and
        inputs of an earlier document become zeros in the state. None: every document goes on.
    slots: int64 or int32 [B], which row of the state belongs to which row of the batch, each at most once; a negative
        one marks a row that only pads: its state is not touched and its output is 0. On a GPU values are not checked,
        as that would wait for the device: there a slot of P or more pads too.

    Returns y [B, D] in x's dtype; sums in float32 or better. Reads no value on the host and allocates nothing of
    varying size, so that it can be captured in a CUDA graph; works under torch.compile. B = 0 gives an empty output.

    Numerics: taps are multiplied and summed in float32 (float64 for float64 data); y is rounded once. Error against
    float64, the worst variant on normal inputs, as norm of the error over norm of the result: float32 7e-08,
    bfloat16 2e-03, float16 4e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves the
    state as it was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, section 2.3.
    """
    return _temporal_conv1d_step(x, weight, bias, state, whole(positions), whole(slots))


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

    x, y: [B, D], the two branches, float32, bfloat16, float16 or float64, any strides; all weights in that dtype.
    conv_weight: [K, D]. conv_bias: [D]. weights: RGLRUWeights.
    conv_state: [P, K-1, D] in x's dtype, oldest input first. h: [P, D], float32 (float64 for float64). P = B without
        slots.
    positions: int64 or int32 [B], each token's position in its document: 0 begins a new one, which reads neither state.
        None: every document goes on.
    slots: int64 or int32 [B], which row of both states belongs to which row of the batch, each at most once; a negative
        one marks a row that only pads: no state is touched and its output is 0. On a GPU values are not checked, as
        that would wait for the device: there a slot of P or more pads too.

    Returns out [B, D] in x's dtype. Sums, gates' exponentials and the state are float32 or better. Reads no value on
    the host and allocates nothing of varying size, so that it can be captured in a CUDA graph; works under
    torch.compile. B = 0 gives an empty output.

    Numerics: as temporal_conv1d_step and rg_lru_step; the convolution's output may be rounded to x's dtype before
    the gate products. gelu is float32 in fused kernels; out is rounded once. Error against float64, the worst
    variant on normal inputs, as norm of the error over norm of the result: float32 1e-07, bfloat16 5e-03, float16
    4e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves both
    states as they were. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    Source: arXiv 2402.19427, sections 2.3 and 2.4.
    """
    gates = checked("recurrent_block_step", weights)
    return _recurrent_block_step(x, y, conv_weight, conv_bias, *gates, conv_state, h, whole(positions), whole(slots))


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
    k_cache, v_cache: [P, W, Hkv, d] in that dtype, any strides; W is the window, P = B without slots. The key of
        position p is in slot p % W. Slots above a row's position are not seen; they may hold anything finite (zeros, an
        earlier document).
    positions: int64 or int32 [B], each token's position in its document, 0 or above: 0 begins a new document.
    slots: int64 or int32 [B], which row of the caches belongs to which row of the batch, each at most once; a negative
        one marks a row that only pads: no ring is touched for it and its output is 0. On a GPU values are not checked,
        as that would wait for the device: there a slot of P or more pads too.
    softcap: scores become softcap * tanh(scores / softcap). scale: of the scores; d ** -0.5 if None.

    Returns [B, Hq, d] in q's dtype; scores and softmax in float32 or better. Reads no value on the host and allocates
    nothing of varying size, so that it can be captured in a CUDA graph; works under torch.compile. B = 0 gives an empty
    output.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data); bfloat16 and float16 may round
    softmax's weights before their product with v, and round out once. Error against float64, the worst variant on
    normal inputs, as norm of the error over norm of the result: float32 4e-07, bfloat16 5e-03, float16 4e-04.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves the
    ring as it was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    """
    return _local_attention_step(q, k, v, k_cache, v_cache, whole(positions), whole(slots), softcap, scale)
