"""Gradients of packed sequences through a form that knows nothing of them; see temporal_conv1d/_packed.py.

The rows of a sequence's state go before it as if they were inputs: their gradients are those of the state. What the
convolution gives at those rows is dropped, so that its gradient there is zero. The new state is a copy of the last K-1
rows of each sequence with its state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.ops.temporal_conv1d._packed import places, spread


def apart(
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]],
    dy: Tensor,
    dnew_state: Tensor | None,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor,
    *positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dx, dweight, dbias, dstate by ``gradients(dy, None, x, weight, None, *positions)`` of sequences set apart.

    dnew_state: zero where the new state holds zeros in place of inputs. positions: segment_pos, for forms that take it.
    """
    rows = weight.shape[0] - 1
    where = places(cu_seqlens, x.shape[1], rows + 1)
    moved = [None if p is None else spread(p, None, where) for p in positions]
    inputs = spread(x, state, where)
    dinputs, dweight, dbias, _ = gradients(spread(dy, None, where), None, inputs, weight, None, *moved)
    if dnew_state is not None and rows:
        # a sequence's last rows end where the next one's state begins, or all ends
        ends = cu_seqlens[1:].long() + rows * torch.arange(1, cu_seqlens.shape[0], device=x.device, dtype=torch.int64)
        last = ends[:, None] + torch.arange(-rows, 0, device=x.device, dtype=torch.int64)
        dinputs[0, last] += dnew_state
    dstate = None if state is None else dinputs[0, where.states]
    return dinputs[:, where.steps], dweight, dbias, dstate
