"""Packed sequences as one long one, for kernels that know nothing of them.

Before each sequence go the K-1 rows of its state, or zeros, so that no tap reaches the sequence before:

    packed [1, T, D], state [N, K-1, D]   ->   state_0, sequence_0, state_1, sequence_1, ...   [1, T + N (K-1), D]

What a convolution gives at the states' rows is dropped, so that its gradient there is zero; the gradients of the rows
themselves are those of the states. No value is read on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

ConvGradients = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""dx, dweight, dbias, dstate; no dbias without a bias."""


class Places(NamedTuple):
    """Where rows go. steps: int64 [T], of the packed steps. states: int64 [N, K-1], of the states' rows."""

    steps: Tensor
    states: Tensor


def places(cu_seqlens: Tensor, time: int, taps: int) -> Places:
    """The layout of sequences with offsets ``cu_seqlens`` [N+1] in ``time`` steps."""
    rows, device = taps - 1, cu_seqlens.device
    offsets = cu_seqlens.long()
    step = torch.arange(time, device=device, dtype=torch.int64)
    # the ends at or before a step count the sequences before its own, empty ones too
    row = torch.searchsorted(offsets[1:].contiguous(), step, right=True)
    first = offsets[:-1] + rows * torch.arange(offsets.shape[0] - 1, device=device, dtype=torch.int64)
    return Places(step + rows * (row + 1), first[:, None] + torch.arange(rows, device=device, dtype=torch.int64))


def spread(tensor: Tensor, state: Tensor | None, where: Places) -> Tensor:
    """tensor [1, T, ...] and, between the sequences, the rows of state [N, K-1, ...], or zeros."""
    out = tensor.new_zeros(1, where.steps.numel() + where.states.numel(), *tensor.shape[2:])
    out[0, where.steps] = tensor[0]
    if state is not None:
        out[0, where.states] = state
    return out


def apart(
    gradients: Callable[..., ConvGradients], call: Any, dnew_state: Tensor | None, *positions: Tensor | None
) -> ConvGradients:
    """Those of a call by ``gradients(dy, None, x, weight, bias, None, *positions)`` of sequences set apart.

    dnew_state: zero where the new state, a copy of the last K-1 rows of each sequence with its state, holds zeros in
    place of inputs. positions: segment_pos, for forms that take it.
    """
    x, state, cu_seqlens, rows = call.x, call.state, call.cu_seqlens, call.weight.shape[0] - 1
    where = places(cu_seqlens, x.shape[1], rows + 1)
    moved = [None if p is None else spread(p, None, where) for p in positions]
    if state is not None:
        # that of a sequence without steps meets no gradient: not even a factor of zero, which inf would make NaN
        state = state.masked_fill((cu_seqlens.diff() == 0)[:, None, None], 0.0)
    inputs, upstream = spread(x, state, where), (spread(call.dy, None, where), None)
    dinputs, dweight, dbias, _ = gradients(*upstream, inputs, call.weight, call.bias, None, *moved)
    if dnew_state is not None and rows:
        # a sequence's last rows end where the next one's state begins, or all ends
        ends = cu_seqlens[1:].long() + rows * torch.arange(1, cu_seqlens.shape[0], device=x.device, dtype=torch.int64)
        last = ends[:, None] + torch.arange(-rows, 0, device=x.device, dtype=torch.int64)
        dinputs[0, last] += dnew_state
    dstate = None if state is None else dinputs[0, where.states]
    return dinputs[:, where.steps], dweight, dbias, dstate
