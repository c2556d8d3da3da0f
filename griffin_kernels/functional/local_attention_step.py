"""The public local_attention_step: one token of decoding over a ring of keys and values, by the tuned kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import catalog, dispatch, errors, specs
from griffin_kernels.contract import TensorSpec
from griffin_kernels.functional import _bridge

_OP = catalog.op("local_attention_step")
_NEW = {name: TensorSpec("B Hkv d") for name in ("k", "v")}
_CALL = dataclasses.replace(_OP, inputs={"q": _OP.inputs["q"], **_NEW, **_OP.inputs})
"""The public call as data: that of the op, and the new token's key and value."""

_checked: set[Any] = set()
"""Signatures that have passed every check, which has to be before the cache is written."""


def _check(tensors: dict[str, Any], softcap: float | None, scale: float | None) -> None:
    key = (*[(t.shape, t.dtype, t.device) if isinstance(t, Tensor) else None for t in tensors.values()], softcap, scale)
    if key in _checked:
        return
    specs.bind(_CALL, tensors)
    assert _OP.check is not None
    _OP.check(**{name: tensors[name] for name in _OP.inputs}, softcap=softcap, scale=scale)
    if len(_checked) >= dispatch.MOST_SIGNATURES:
        _checked.clear()
    _checked.add(key)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    softcap: float | None,
    scale: float | None,
) -> Tensor:
    tensors = {"q": q, "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "positions": positions}
    _check(tensors, softcap, scale)
    at = (torch.arange(k_cache.shape[0], device=k_cache.device), positions % k_cache.shape[1])
    k_cache.index_put_(at, k)
    v_cache.index_put_(at, v)
    inputs = {name: tensors[name] for name in _OP.inputs}
    (out,) = dispatch.call(_OP.name, inputs | {"softcap": softcap, "scale": scale})
    assert out is not None
    return out


_custom_op: Any = torch.library.custom_op(
    f"{_bridge.NAMESPACE}::{_OP.name}",
    _step,
    mutates_args=("k_cache", "v_cache"),
    schema="(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor positions, "
    "float? softcap, float? scale) -> Tensor",
)


@_custom_op.register_fake  # type: ignore[untyped-decorator]
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    softcap: float | None,
    scale: float | None,
) -> Tensor:
    return q.new_empty(q.shape)


def local_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of one new token per row to the last W keys of its document, kept in a ring. Changes the ring in place.

    The new key and value are written to slot ``positions % W`` of each row, over those that have just left the window;
    then the token attends to W keys, its own included, as ``local_attention`` with ``window=W`` gives it.

    q: [B, Hq, d]; k, v: [B, Hkv, d], the new token's, Hq a multiple of Hkv; float32, bfloat16, float16 or float64, the
        same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
    k_cache, v_cache: [B, W, Hkv, d] in that dtype, any strides; W is the window. The key of position p is in slot
        p % W. Slots above a row's position are not seen; they may hold anything finite (zeros, an earlier document).
    positions: int64 or int32 [B], each token's position in its document, 0 or above: 0 begins a new document.
        Its values are not checked, as that would wait for the device.
    softcap: scores become softcap * tanh(scores / softcap). scale: of the scores; d ** -0.5 if None.

    Returns [B, Hq, d] in q's dtype; scores and softmax in float32 or better. Reads no value on the host and allocates
    nothing of varying size, so that it can be captured in a CUDA graph; works under torch.compile. B = 0 gives an empty
    output.

    Raises ShapeError, DtypeError, DeviceMismatchError or ArgumentError naming the argument at fault, and leaves the
    ring as it was. It has no gradient: in grad mode, tensors that require one raise ArgumentError.
    """
    if torch.is_grad_enabled():
        for name, tensor in (("q", q), ("k", k), ("v", v), ("k_cache", k_cache), ("v_cache", v_cache)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise errors.ArgumentError(
                    f"{_OP.name}: {name} requires a gradient, and decoding has none: call it under torch.no_grad(), "
                    "or use local_attention"
                )
    if isinstance(positions, Tensor) and positions.dtype == torch.int32:
        positions = positions.long()
    args = (q, k, v, k_cache, v_cache, positions, softcap, scale)
    out: Tensor = _step(*args) if _bridge.is_plain(args) else _custom_op(*args)
    return out
