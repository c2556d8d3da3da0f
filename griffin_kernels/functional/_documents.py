"""What tells documents within a row apart, from one form of it to another."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels import errors


def segment_positions(seq_idx: Tensor, first: Tensor | None = None) -> Tensor:
    """``segment_pos`` of document numbers, as engines and collators pass them.

    seq_idx: int32 or int64 [B, T], the number of each token's document; a document is a run of equal ones. Negative for
        padding: each such token is a document of its own, which reads nobody and whom nobody reads. To make its output
        0 too: ``y.masked_fill((seq_idx < 0)[..., None], 0)``, which also keeps its gradient from the weights.
    first: int64 or int32 [B], the position of each row's first token in its document, where that goes on from a state;
        0 if None.

    Returns int64 [B, T] on the device of seq_idx, whose values are not read on the host. Raises ArgumentError,
    ShapeError or DtypeError naming the argument at fault.
    """
    for name, value, dims in (("seq_idx", seq_idx, 2), ("first", first, 1)):
        if value is None and name == "first":
            continue
        if not isinstance(value, Tensor):
            raise errors.ArgumentError(f"{name} is a {type(value).__name__}, expected a tensor")
        if value.dtype not in (torch.int32, torch.int64):
            raise errors.DtypeError(f"{name} is {str(value.dtype).removeprefix('torch.')}, expected int32 or int64")
        if value.dim() != dims or value.shape[0] != seq_idx.shape[0]:
            expected = "[B, T]" if dims == 2 else f"[B={seq_idx.shape[0]}]"
            raise errors.ShapeError(f"{name} has shape {list(value.shape)}, expected {expected}")
    step = torch.arange(seq_idx.shape[1], dtype=torch.int64, device=seq_idx.device)
    if not seq_idx.numel():
        return step.expand(seq_idx.shape).contiguous()
    begins = seq_idx < 0
    begins[:, 1:] |= seq_idx[:, 1:] != seq_idx[:, :-1]
    begin = torch.where(begins, step, 0).cummax(1).values
    positions = step - begin
    if first is not None:
        # the first document is what begins at step 0, unless that pads
        positions += torch.where((begin == 0) & (seq_idx[:, :1] >= 0), first.long()[:, None], 0)
    return positions
