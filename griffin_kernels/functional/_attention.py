"""The public attention: of sequences, and of one or a few new tokens to a ring of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.functional._bridge import offsets, registered, wants_gradient, whole
from griffin_kernels.functional._common import autocast, documented, in_dtype
from griffin_kernels.functional._rotary import NewTokens, turned
from griffin_kernels.ops.local_attention.op import check_offsets_of_keys

_local_attention: Callable[..., tuple[Tensor, Tensor]] = registered("local_attention")
_local_attention_step: Callable[..., Tensor] = registered("local_attention_step")
_local_attention_extend: Callable[..., Tensor] = registered("local_attention_extend")


@overload
def local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None, softcap: float | None = None, scale: float | None = None,
    right: int = 0, return_lse: Literal[False] = False, cu_seqlens_k: Tensor | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, segment_pos: Tensor | None = None,
    cu_seqlens: Tensor | None = None, softcap: float | None = None, scale: float | None = None,
    right: int = 0, return_lse: Literal[True], cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@documented((3e-7, 6e-3, 4e-4), (6e-7, 9e-3, 6e-4))
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
    right: int = 0,
    return_lse: bool = False,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of every query to the last ``window`` keys of its own document; causal unless ``right``.

    q: [B, T, Hq, d]; k, v: [B, S, Hkv, d], Hq a multiple of Hkv (1: multi-query attention); float32, bfloat16,
        float16 or float64, the same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
        The queries belong to the last T of the S keys: to go on with a sequence, put the keys and values kept from
        earlier calls (the last window - 1 are enough) before the new ones. With more queries than keys the first T - S
        come before the first key: they give 0, or see what of ``right`` reaches it. Of packed sequences, S must be T
        unless cu_seqlens_k is given.
    window: a query sees its own key and the window - 1 before it. DeepMind's published mask lets one more through.
    segment_pos: int64 or int32 [B, T], each query's position in its document, rising by one from token to token. A
        query at position p sees at most the last p + 1 keys: none from before its document, kept keys included.
        Without it, all S keys are of one document.
    right: keys after its own that a query sees as well, for encoders and other models that are not causal: those of its
        own document, which ends before the next query at position 0. 0 is causal attention.
    cu_seqlens_k: int32 or int64 [N+1], offsets of the N sequences' keys in k and v, [1, S, Hkv, d], where they are
        others than those of the queries in q [1, T, Hq, d]: longer for chunks of prompts with kept keys. The queries
        of each sequence are the last of its own keys, as with flash-attn's causal masks, and both offsets may end
        early, on any device: queries after them give 0, keys after them are not read. None: those of the queries.

    Returns [B, T, Hq, d] in q's dtype, and with return_lse the logarithm of the sum of exp(score) over the keys that
    each query sees, [B, Hq, T] in float32 (float64 for float64 data), by which attention to several sets of keys is
    joined; -inf for a query that sees none. Differentiable once in q, k and v, from both.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data). In bfloat16 and float16 most variants
    round softmax's weights before their product with v, and in the gradient those of the scores before theirs with
    q and k, as matrix units take them; out and gradients are rounded once.
    """
    if (dtype := autocast(q)) is not None:
        q, k, v = in_dtype(dtype, q, k, v)
    with_lse = return_lse or wants_gradient((q, k, v))
    if isinstance(cu_seqlens_k, Tensor):
        check_offsets_of_keys(cu_seqlens, cu_seqlens_k)
    places = whole(segment_pos), offsets(cu_seqlens), offsets(cu_seqlens_k)
    found = _local_attention(q, k, v, *places, window, softcap, scale, with_lse, right)
    return found if return_lse else found[0]


@documented((4e-7, 5e-3, 4e-4))
def local_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    *,
    window: int | None = None,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    pad_slot: int = -1,
    softcap: float | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    rotary_interleaved: bool = False,
) -> Tensor:
    """Attention of one new token per row to the last W keys of its document, kept in a ring. Changes the ring in place.

    The new key and value are written to slot ``positions % W`` of each row, over those that have just left the window;
    then the token attends to W keys, its own included, as ``local_attention`` with ``window=W`` gives it.

    q: [B, Hq, d]; k, v: [B, Hkv, d], the new token's, Hq a multiple of Hkv; float32, bfloat16, float16 or float64, the
        same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
    k_cache, v_cache: [P, W, Hkv, d] in that dtype, any strides; W is the window. The key of position p is in slot p % W
        of its row. Slots above a row's position are not seen; they may hold anything (an earlier document, NaN).
    positions: int64 or int32 [B], each token's position in its document, 0 or above: 0 begins a new document.
    window: of rings that have room for more keys than that, as ``local_attention_extend`` needs it, whose call for one
        token this then is; None where the whole ring is the window. With block_table it has to be given.
    block_table: of rings in pages, as ``local_attention_extend`` has it, whose call for one token this then is.

    Returns [B, Hq, d] in q's dtype.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data); bfloat16 and float16 may round
    softmax's weights before their product with v, and round out once.
    """
    if (dtype := autocast(q, k_cache)) is not None:
        q, k, v = in_dtype(dtype, q, k, v)
    positions, slots, block_table = whole(positions), whole(slots), whole(block_table)
    if rotary is not None:
        tokens = NewTokens(q, k, positions, _marks(slots, block_table), None, pad_slot)
        q, k, positions = turned("local_attention_step", tokens, rotary, rotary_interleaved)
    if block_table is not None and window is None:
        raise errors.ArgumentError(
            "local_attention_step: block_table is given without window: pass how many keys a token sees"
        )
    if window is not None and (block_table is not None or k_cache.dim() < 2 or window != k_cache.shape[1]):
        out = _local_attention_extend(
            q[:, None], k[:, None], v[:, None], k_cache, v_cache, positions, slots, None, block_table, window, softcap,
            scale, pad_slot,
        )  # fmt: skip
        return out[:, 0]
    return _local_attention_step(q, k, v, k_cache, v_cache, positions, slots, softcap, scale, pad_slot)


@documented((4e-7, 5e-3, 4e-4))
def local_attention_extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    *,
    window: int,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
    block_table: Tensor | None = None,
    pad_slot: int = -1,
    softcap: float | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    rotary_interleaved: bool = False,
) -> Tensor:
    """Attention of a few new tokens per row to the last ``window`` keys of its document, kept in a ring.

    For guessed tokens that are verified at once, and for prefills in chunks. It gives what as many calls of
    ``local_attention_step`` would; rows of a batch may stand at different positions. Changes the rings in place. A
    later call may begin at any position of this one's tokens, as after the rejection of the others.

    q: [B, T, Hq, d]; k, v: [B, T, Hkv, d], of the new tokens, Hq a multiple of Hkv; float32, bfloat16, float16 or
        float64, the same dtype; any strides. Query head h reads key head h // (Hq / Hkv).
    k_cache, v_cache: [P, R, Hkv, d] in that dtype, any strides, R at least window + T - 1, so that rejected tokens have
        overwritten nothing that is still seen. The key of position p is in slot p % R of its row. Slots of positions
        that no token sees may hold anything (rejected tokens, an earlier document, NaN). With block_table they are
        [num_pages, page_size, Hkv, d], and R is pages * page_size.
    block_table: int64 or int32 [B, pages], in place of slots: slot s of row b's ring is row s % page_size of page
        block_table[b, s // page_size]. A row whose first page is negative, or pad_slot, only pads: no page is touched
        and its output is 0. Entries of other pages that no key of the call needs may be anything. Rows may share pages
        that no token of the call is written to. On a GPU values are not checked: of a row with a page out of
        reach the output is undefined, and nothing is written for that page.
    positions: int64 or int32 [B], the position in its document of each row's first token, 0 or above; or [B, T], of
        every token, rising by one from token to token. A document that begins within a call's tokens is not one row:
        give it a call of its own.
    window: a token sees its own key and the window - 1 before it.
    lengths: int64 or int32 [B], how many of its T tokens are real in each row, 0 to T; all if None. Those after them
        only pad: they are written nowhere and give 0. On a GPU values are not checked, but cut to 0 to T.

    Returns [B, T, Hq, d] in q's dtype.

    Numerics: scores, softmax and sums are float32 (float64 for float64 data); bfloat16 and float16 may round
    softmax's weights before their product with v, and round out once.
    """
    if (dtype := autocast(q, k_cache)) is not None:
        q, k, v = in_dtype(dtype, q, k, v)
    positions, slots, lengths = whole(positions), whole(slots), whole(lengths)
    block_table = whole(block_table)
    if isinstance(positions, Tensor) and positions.dim() == 2:
        positions = _first_positions(positions, q.shape[1], lengths)
    if rotary is not None:
        tokens = NewTokens(q, k, positions, _marks(slots, block_table), lengths, pad_slot)
        q, k, positions = turned("local_attention_extend", tokens, rotary, rotary_interleaved)
    return _local_attention_extend(
        q, k, v, k_cache, v_cache, positions, slots, lengths, block_table, window, softcap, scale, pad_slot
    )


def _marks(slots: Tensor | None, block_table: Tensor | None) -> Tensor | None:
    """What marks rows that only pad: the first page of each, or its slot."""
    if isinstance(block_table, Tensor) and block_table.dim() == 2 and block_table.shape[1]:
        return block_table[:, 0]
    return slots


def _first_positions(positions: Tensor, time: int, lengths: Tensor | None) -> Tensor:
    """[B] of positions [B, T]. Those of real tokens rise by one, which is checked on a CPU."""
    batch, count = positions.shape
    if count != time:
        text = f"local_attention_extend: positions has shape [{batch}, {count}], expected [B] or [B, T={time}]"
        raise errors.ShapeError(text)
    if time == 0:
        return positions.new_zeros(batch)
    if positions.device.type == "cpu" and not torch.compiler.is_compiling():
        steps = torch.arange(time, dtype=torch.int64, device="cpu")
        wrong = positions - positions[:, :1] != steps
        if lengths is not None:
            wrong &= steps < lengths[:, None]
        if wrong.any():
            raise errors.ArgumentError(
                "local_attention_extend: positions do not rise by one from token to token; a document that begins "
                "within a row's tokens needs a call of its own"
            )
    return positions[:, 0]
