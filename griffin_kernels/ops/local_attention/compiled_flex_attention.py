"""torch.nn.attention.flex_attention, compiled, with this op's window, documents and softcap.

Skips blocks of 128 x 128 scores that no query sees. Compiled once per shape. The block mask is built once too where it
depends on the window alone; with documents it is built for every batch, from a T x S mask, and serves all layers: it is
not timed. Source: torch.nn.attention.flex_attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.local_attention import _isolated
from griffin_kernels.ops.local_attention._key_ranges import first_keys, last_keys, near
from griffin_kernels.ops.local_attention.cost import PACKED_KEYS
from griffin_kernels.ops.local_attention.op import Call

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, score_mod: Any, scale: float | None, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    gqa = q.shape[1] != k.shape[1]
    options: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if with_lse else {}
    found: Any = flex_attention(q, k, v, score_mod=score_mod, block_mask=mask, scale=scale, enable_gqa=gqa, **options)
    return (found[0], found[1].lse) if with_lse else (found, None)


@functools.lru_cache(maxsize=64)
def _window_mask(time: int, keys: int, window: int, right: int, device: torch.device) -> BlockMask:
    earlier = keys - time

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query + earlier + right) & (query + earlier - key < window)

    return create_block_mask(visible, None, None, time, keys, device=str(device))


@functools.lru_cache(maxsize=64)
def _document_predicate(
    batch: int, time: int, keys: int, right: bool, device: torch.device
) -> tuple[Tensor, Tensor, Predicate]:
    """Buffers for the first and the last visible key of each query, and the predicate that reads them.

    right: whether the last may be another than the query's own, which is not read.
    """
    first, last = (torch.zeros(batch, time, dtype=torch.int64, device=device) for _ in range(2))
    earlier = keys - time

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query + earlier) & (key >= first[b, query])

    def visible_both_ways(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= last[b, query]) & (key >= first[b, query])

    return first, last, visible_both_ways if right else visible


@functools.lru_cache(maxsize=64)
def _softcap(cap: float) -> Callable[..., Tensor]:
    def bend(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return bend


def prepare(call: Call) -> Inputs:
    """The arguments of ``call``: the compiled function for calls of this kind and its own, heads before time.

    Gradients are recorded where q requires them.
    """
    q, k, v, segment_pos, cu_seqlens, _, window, softcap, scale, with_lse, right = call = near(call)
    (batch, time), keys = q.shape[:2], k.shape[1]
    documents = segment_pos is not None or cu_seqlens is not None
    if not documents:
        mask = _window_mask(time, keys, window, right, q.device)
    else:
        first, last, visible = _document_predicate(batch, time, keys, right > 0, q.device)
        first.copy_(first_keys(call))
        last.copy_(last_keys(call))
        mask = create_block_mask(visible, batch, None, time, keys, device=str(q.device))
    training = torch.is_grad_enabled() and q.requires_grad
    key = (q.shape, k.shape, q.dtype, q.device, window, right, softcap, scale, documents, with_lse, training)
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    bend = None if softcap is None else _softcap(softcap)
    attend = _compiled.compiled(_attend, key, dynamic=False)
    return {"attend": attend, "arguments": (*heads_first, mask, bend, scale, with_lse)}


def call(attend: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """out [B,Hq,T,d] and lse [B,Hq,T] or None of q [B,Hq,T,d] and k, v [B,Hkv,S,d]."""
    found: tuple[Tensor, Tensor | None] = attend(*arguments)
    return found


def problem(case: Case, device: Device) -> str | None:
    """What flex_attention cannot do in either direction."""
    if case.dtype == "float64":
        return "flex_attention has no float64 kernels"
    if PACKED_KEYS in case.flags or case["S"] < case["T"]:
        return "the block masks made for flex_attention take as many keys as queries or more, of the same sequences"
    if device.kind in ("cuda", "hip") and case["d"] < 16:
        return f"flex_attention needs head_dim 16 or more on a GPU, it is {case['d']}"
    return _compiled.problem(device)


def finish(results: tuple[Tensor, Tensor | None], call: Call) -> tuple[Tensor | None, ...]:
    """Time before heads."""
    out, lse = results
    return out.transpose(1, 2), lse


ADAPTER = Adapter(prepare, torch.no_grad()(call), finish)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """On a CPU it gives no lse, and on one without AVX-512 PyTorch 2.13 gets a single query wrong."""
    if device.kind == "cpu" and case["T"] == 1 and "avx512" not in device.arch:
        return "flex_attention is wrong for a single query on a processor without AVX-512"
    if device.kind == "cpu" and "lse" in case.data:
        return "flex_attention on a CPU does not return the log-sum-exp, which the backward pass needs"
    return problem(case, device)


VARIANT = Variant(
    op="local_attention",
    name="compiled.flex_attention",
    summary="torch.nn.attention.flex_attention, compiled",
    run=_isolated.forward(lambda call, config: ADAPTER(call)),
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
