"""Documents of any length in batches of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from griffin_kernels import errors


class PackedBatch(NamedTuple):
    """Rows of documents for ``Griffin.loss``; all int64 [B, T], on the CPU until ``to``.

    tokens. targets: the token that follows each in its document, ignore_index where there is none. segment_pos: each
    token's position in its document, or in the piece of it that a row holds.
    """

    tokens: Tensor
    targets: Tensor
    segment_pos: Tensor

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [N+1], offsets of the documents in the rows put one after the other: ``tokens.view(1, -1)``.

        For layers that take packed sequences rather than positions. Waits for a GPU that the batch is on.
        """
        begins = (self.segment_pos.flatten() == 0).nonzero()[:, 0]
        end = begins.new_full((1,), self.segment_pos.numel())
        return torch.cat([begins, end]).int()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        return PackedBatch(*[tensor.to(device, non_blocking=non_blocking) for tensor in self])


class _Row:
    """A row that is being filled."""

    def __init__(self, length: int, pad: int, ignore_index: int) -> None:
        self.filled, self.length = 0, length
        self.tensors = PackedBatch(
            torch.full((length,), pad, dtype=torch.int64, device="cpu"),
            torch.full((length,), ignore_index, dtype=torch.int64, device="cpu"),
            torch.zeros(length, dtype=torch.int64, device="cpu"),
        )

    @property
    def room(self) -> int:
        return self.length - self.filled

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        end = self.filled + len(tokens)
        steps = torch.arange(len(tokens), dtype=torch.int64, device="cpu")
        for mine, given in zip(self.tensors, (tokens, targets, steps), strict=True):
            mine[self.filled : end] = given
        self.filled = end

    def done(self) -> PackedBatch:
        """With what is left as one document of padding."""
        self.tensors.segment_pos[self.filled :] = torch.arange(self.room, dtype=torch.int64, device="cpu")
        return self.tensors


def pack(
    documents: Iterable[Any],
    length: int,
    batch: int,
    *,
    split: bool = True,
    drop_last: bool = False,
    ignore_index: int = -100,
    pad: int = 0,
) -> Iterator[PackedBatch]:
    """Batches [batch, length] of documents one after the other; a generator, which keeps one batch in memory.

    documents: an iterable of lists, arrays or tensors of token ids, each one document with whatever tokens begin and
        end it. Empty ones are passed over.
    length, batch: T and B.
    split: fill every row, and go on with a document in the next row, at position 0: that piece sees nothing of what
        came before. False: a document that would fit into a row but not into what is left of this one begins the next,
        and what is left is padded. Only those longer than a row are cut.
    drop_last: leave out the last batch unless it is full; else it is filled with rows of padding.
    ignore_index: the target where there is none: after a document's last token and in padding. So no token is asked
        for what another document begins with. Where a piece ends, the target is the token that the next piece begins
        with. pad: the token of padding, which is a document of its own.

    Raises ArgumentError for sizes below 1, and ShapeError or DtypeError for a document that is no list of ids.
    """
    for name, size in (("length", length), ("batch", batch)):
        if size < 1:
            raise errors.ArgumentError(f"{name} is {size}, expected at least 1")
    return _batches(documents, length, batch, split, drop_last, ignore_index, pad)


def _batches(
    documents: Iterable[Any], length: int, batch: int, split: bool, drop_last: bool, ignore_index: int, pad: int
) -> Iterator[PackedBatch]:
    rows: list[PackedBatch] = []
    row = _Row(length, pad, ignore_index)
    for number, document in enumerate(documents):
        tokens = _ids(document, number)
        targets = torch.cat([tokens[1:], tokens.new_full((min(len(tokens), 1),), ignore_index)])
        while len(tokens):
            if row.room == 0 or (not split and row.filled and row.room < len(tokens)):
                rows.append(row.done())
                row = _Row(length, pad, ignore_index)
                if len(rows) == batch:
                    yield _stacked(rows)
                    rows = []
            piece = min(row.room, len(tokens))
            row.add(tokens[:piece], targets[:piece])
            tokens, targets = tokens[piece:], targets[piece:]
    if row.filled:
        rows.append(row.done())
    if rows and (len(rows) == batch or not drop_last):
        rows += [_Row(length, pad, ignore_index).done() for _ in range(batch - len(rows))]
        yield _stacked(rows)


def _stacked(rows: list[PackedBatch]) -> PackedBatch:
    return PackedBatch(*[torch.stack(tensors) for tensors in zip(*rows, strict=True)])


def _ids(document: Any, number: int) -> Tensor:
    array = numpy.asarray(document.cpu() if isinstance(document, Tensor) else document)
    if array.ndim != 1:
        raise errors.ShapeError(f"documents: number {number} has shape {list(array.shape)}, expected a list of ids")
    if array.size and array.dtype.kind not in "iu":
        raise errors.DtypeError(f"documents: number {number} holds {array.dtype}, expected whole numbers")
    return torch.from_numpy(array.astype(numpy.int64))
