"""The public local_attention_step: one token of decoding over a ring of keys and values, by the tuned kernels."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.functional import _bridge

_step = _bridge.InPlace("local_attention_step", instead="local_attention")


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
    indices = (_bridge.whole(positions), _bridge.whole(slots))
    out: Tensor = _step(q, k, v, k_cache, v_cache, *indices, softcap, scale)
    return out
