"""Where the tokens of a call stand in their documents, from what transformers passes: masks, positions, offsets."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels import errors


class Placement(NamedTuple):
    """What the blocks of one call share.

    segment_pos: int64 [B, T], each token's position in its document, a padding token at 0; None where each row is one
        document without padding, that begins with the call or goes on from the cache.
    order, inverse: int64 [B, T], where padding lies between a row's tokens: real tokens first, and back. segment_pos
        then is in that order.
    lengths: int64 [B], with order: how many tokens of each row are real.
    theirs: attention is transformers' own in this call.
    """

    segment_pos: Tensor | None
    order: Tensor | None = None
    inverse: Tensor | None = None
    lengths: Tensor | None = None
    theirs: bool = False

    def ordered(self, x: Tensor) -> Tensor:
        """[B, T, ...] with real tokens first."""
        return x if self.order is None else _gathered(x, self.order)

    def in_place(self, x: Tensor) -> Tensor:
        """[B, T, ...], which has real tokens first, as the caller has them."""
        return x if self.inverse is None else _gathered(x, self.inverse)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    shape = (*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.view(shape).expand(*index.shape, *x.shape[2:]))


class Given(NamedTuple):
    """What a caller says about B rows of T tokens, of which a cache has ``seen`` others each.

    position_ids: [B or 1, T]. mask: [B, seen + T], nonzero for real tokens. cu_seqlens: [N + 1], of a batch of one.
    seq_idx: [B, T]. keeps: a cache goes on after these tokens.
    """

    batch: int
    time: int
    device: torch.device
    seen: int
    position_ids: Tensor | None
    mask: Tensor | None
    cu_seqlens: Tensor | None
    seq_idx: Tensor | None
    keeps: bool


def placed(given: Given) -> tuple[Placement, Tensor]:
    """The placement, and position_ids [B or 1, T] for the rotary embedding, as given or in the document.

    A document begins at position 0, where positions do not go on by one, and at the first real token of a row.
    """
    _check(given)
    steps = torch.arange(given.time, device=given.device, dtype=torch.int64)
    position_ids, mask = given.position_ids, given.mask
    if position_ids is not None:
        position_ids = position_ids.to(given.device).long()
    if mask is not None:
        mask = mask.to(given.device) != 0
    if not torch.compiler.is_compiling():  # to know more costs a look at values
        if mask is not None and bool(mask.all()):
            mask = None
        plain = mask is None and given.cu_seqlens is None and given.seq_idx is None and given.time > 1
        if plain and position_ids is not None and bool((position_ids == steps + given.seen).all()):
            return Placement(None), position_ids
    if mask is None and given.cu_seqlens is None and given.seq_idx is None:
        if position_ids is None:
            segment_pos = (steps + given.seen).expand(given.batch, given.time)
            # a step of one token has to be told that it is the first
            return Placement(segment_pos if given.time == 1 else None), segment_pos[:1]
        if given.time == 1:
            segment_pos = position_ids.expand(given.batch, 1)
            return Placement(segment_pos.clamp(max=given.seen) if given.seen else segment_pos), position_ids

    begins = torch.zeros(given.batch, given.time, dtype=torch.bool, device=given.device)
    placement = Placement(None)
    before: int | Tensor = given.seen
    if mask is not None:
        real, before = mask[:, given.seen :], mask[:, : given.seen].sum(1)
        number = before[:, None] + real.cumsum(1)  # of real tokens up to each, itself counted
        placement = _order(real, number, given.keeps)
        first = number == 1
        first[:, :1] = False  # what follows padding; whether a row begins with the call, its position says
        begins |= placement.ordered(~real | first)
        if position_ids is None and given.cu_seqlens is None and given.seq_idx is None:
            position_ids = (number - 1).clamp(min=0)
            return placement._replace(segment_pos=_since(begins, before, steps)), position_ids
    begins |= placement.ordered(_boundaries(given, begins))
    base = before
    if position_ids is not None:
        positions = placement.ordered(position_ids.expand(given.batch, given.time))
        later, earlier = positions[:, 1:], positions[:, :-1]
        begins |= positions == 0
        begins[:, 1:] |= later != earlier + 1 if mask is None else later <= earlier
        first = positions[:, 0]
        base = (
            torch.minimum(first, torch.as_tensor(before, dtype=torch.int64, device=given.device))
            if given.seen
            else first
        )
    placement = placement._replace(segment_pos=_since(begins, base, steps))
    if position_ids is None:
        assert placement.segment_pos is not None
        position_ids = placement.in_place(placement.segment_pos)
    return placement, position_ids


def _order(real: Tensor, number: Tensor, keeps: bool) -> Placement:
    """How to put real tokens first, where padding that follows a real token would otherwise be read."""
    between = ~real & (number > 0)
    if not keeps:  # nothing reads what stands after a row's last token
        between &= number < number[:, -1:]
    if not torch.compiler.is_compiling() and not bool(between.any()):
        return Placement(None)
    order = torch.argsort(~real, dim=1, stable=True)
    return Placement(None, order, torch.argsort(order, dim=1), real.sum(1))


def _boundaries(given: Given, begins: Tensor) -> Tensor:
    """bool [B, T], where cu_seqlens or seq_idx begin a document."""
    found = torch.zeros_like(begins)
    if given.cu_seqlens is not None:
        marks = found.new_zeros(given.time + 1)
        marks[given.cu_seqlens.to(given.device, torch.int64).clamp(0, given.time)] = True
        found |= marks[: given.time]
    if given.seq_idx is not None:
        numbers = given.seq_idx.to(given.device)
        found[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
        if not given.seen:
            found[:, 0] = True
    return found


def _since(begins: Tensor, base: int | Tensor, steps: Tensor) -> Tensor:
    """int64 [B, T]: steps since the last begin; a row's first document goes on from position ``base``."""
    begin = torch.where(begins, steps, -1).cummax(1).values
    goes_on = steps + (base[:, None] if isinstance(base, Tensor) else base)
    return torch.where(begin < 0, goes_on, steps - begin)


def additive_mask(
    placement: Placement, given: Given, window: int, sizes: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """[B, 1, T, S] for transformers' own attention: 0 where a query sees a key, else the least number of the dtype.

    sizes: S, and the step of the first key, as ``Cache.get_mask_sizes`` has them.
    """
    steps = torch.arange(given.time, device=given.device, dtype=torch.int64).expand(given.batch, given.time)
    segment_pos = steps + given.seen if placement.segment_pos is None else placement.segment_pos
    length, offset = sizes
    if placement.inverse is not None and given.seen == 0 and not given.keeps:
        query = key = placement.inverse
    elif placement.inverse is None:
        query = steps + given.seen
        key = (torch.arange(length, device=given.device, dtype=torch.int64) + offset).expand(given.batch, length)
    else:
        raise errors.ArgumentError(
            "attention_mask: padding between a row's tokens; with a cache that goes without attention weights only"
        )
    reach = placement.in_place(segment_pos).clamp(max=window - 1)
    sees = (key[:, None] <= query[:, :, None]) & (key[:, None] >= (query - reach)[:, :, None])
    least = torch.finfo(dtype).min
    return torch.where(sees, 0.0, least).to(dtype)[:, None]


def _check(given: Given) -> None:
    rows = (1, given.batch)
    expected: dict[str, tuple[Any, str]] = {
        "position_ids": (given.position_ids, f"[{given.batch}, {given.time}]"),
        "seq_idx": (given.seq_idx, f"[{given.batch}, {given.time}]"),
    }
    for name, (value, text) in expected.items():
        if value is not None and (value.dim() != 2 or value.shape[1] != given.time or value.shape[0] not in rows):
            raise errors.ShapeError(f"{name}: shape {list(value.shape)}, expected {text}")
    mask = given.mask
    if mask is not None and tuple(mask.shape) != (given.batch, given.seen + given.time):
        text = f"[{given.batch}, {given.seen + given.time}], the {given.seen} tokens in the cache counted"
        raise errors.ShapeError(f"attention_mask: shape {list(mask.shape)}, expected {text}")
    if given.cu_seqlens is not None and (given.cu_seqlens.dim() != 1 or given.batch != 1):
        raise errors.ShapeError(
            f"cu_seq_lens_q: shape {list(given.cu_seqlens.shape)} with {given.batch} rows, "
            "expected offsets [N + 1] into a batch of one"
        )
