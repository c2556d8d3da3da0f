"""What the eager variants share: reduce every form of the scan to one plain scan, and the backward to a forward.

A *core* is ``core(x, a) -> h`` for x [B,T,H,n] and a [B,T,H,n,n] in the accumulator's dtype, from a zero state, forward
in time; a[:, 0] meets only that zero state. Resets, packed sequences, h0 and direction are folded in before it:

    reset at t:                    A_t := 0
    a sequence starts at t:        x_t := x_t + A_t h0,  A_t := 0
    reverse:                       flip time
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops.linear_scan._eager import boundaries, previous

Core = Callable[[Tensor, Tensor], Tensor]


def _effective(a: Tensor, reset: Tensor | None, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """a [B,T,H,n,n] in the accumulator's dtype, zero where no earlier state enters a step."""
    matrices = a.to(accumulator(a.dtype))
    if reset is not None:
        matrices = matrices.masked_fill(reset[..., None, None, None], 0.0)
    if cu_seqlens is not None:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        matrices = matrices.index_fill(1, first[nonempty], 0.0)
    return matrices


def _initial(a: Tensor, reset: Tensor | None, at: Tensor | int) -> Tensor:
    """What multiplies h0, [B,H,n,n] or [1,N,H,n,n]: A at a sequence's first step, zero where that step resets."""
    matrices = a[:, at].to(accumulator(a.dtype))
    return matrices if reset is None else matrices.masked_fill(reset[:, at, None, None, None], 0.0)


def apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[..., H, n, n] times [..., H, n] or [..., H * n]; shaped as the vectors."""
    return torch.matmul(matrices, vectors.reshape(*matrices.shape[:-1], 1)).reshape(vectors.shape)


def forward(
    core: Core,
    x: Tensor,
    a: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan through ``core``. Returns h [B,T,D] and h_last [B or N, D]."""
    wide = accumulator(x.dtype)
    matrices = _effective(a, reset, cu_seqlens, reverse)
    values = x.to(wide)
    if cu_seqlens is None:
        if h0 is not None:
            at = x.shape[1] - 1 if reverse else 0
            values = values.clone()
            values[:, at] += apply(_initial(a, reset, at), h0.to(wide))
        h = _directed(core, values, matrices, reverse)
        h_last = h[:, 0 if reverse else -1].clone()
    else:
        first, last, nonempty = boundaries(cu_seqlens, reverse)
        if h0 is not None:
            values = values.clone()
            values[0, first[nonempty]] += apply(_initial(a, reset, first[nonempty])[0], h0[nonempty].to(wide))
        h = _directed(core, values, matrices, reverse)
        # a sequence without steps ends where it began
        h_last = h.new_zeros(nonempty.shape[0], x.shape[2]) if h0 is None else h0.to(wide, copy=True)
        h_last[nonempty] = h[0, last[nonempty]]
    return h.to(x.dtype).contiguous(), h_last


def _directed(core: Core, x: Tensor, a: Tensor, reverse: bool) -> Tensor:
    vectors = x.reshape(*a.shape[:-1])  # [B, T, H, n]
    h = core(vectors.flip(1), a.flip(1)).flip(1) if reverse else core(vectors, a)
    return h.reshape(x.shape)


def backward(
    core: Core,
    dh: Tensor,
    dh_last: Tensor | None,
    a: Tensor,
    h: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """block_diagonal_scan_bwd through ``core``: a scan in the other direction with A^T, one step later.

    Returns dx [B,T,D], da [B,T,H,n,n] and dh0 [B or N, D], or None where there was no h0.
    """
    wide, time = accumulator(a.dtype), a.shape[1]
    incoming = dh.to(wide)
    if dh_last is not None:
        incoming = incoming.clone()
        if cu_seqlens is None:
            incoming[:, 0 if reverse else -1] += dh_last.to(wide)
        else:
            _, last, nonempty = boundaries(cu_seqlens, reverse)
            incoming[0, last[nonempty]] += dh_last[nonempty].to(wide)
    # in the order of the gradient: the first matrix is never used, the others are those of the step visited before
    steps = torch.arange(time, device=a.device, dtype=torch.int64)
    steps = (steps - 1).clamp(min=0) if reverse else (time - steps).clamp(max=time - 1)
    shifted = _effective(a, reset, cu_seqlens, reverse)[:, steps].mT
    visited = incoming.reshape(*a.shape[:-1])
    g = core(visited, shifted) if reverse else core(visited.flip(1), shifted).flip(1)  # [B, T, H, n]
    before = previous(h, h0, cu_seqlens, reverse)
    if reset is not None:
        before = before.masked_fill(reset[..., None], 0.0)
    da = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    torch.mul(g[..., :, None], before.reshape(g.shape)[..., None, :], out=da)
    g = g.reshape(dh.shape)
    dh0 = None
    if h0 is not None and cu_seqlens is None:
        at = time - 1 if reverse else 0
        dh0 = apply(_initial(a, reset, at).mT, g[:, at])
    elif h0 is not None and cu_seqlens is not None:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        dh0 = torch.zeros(h0.shape, dtype=wide, device=a.device) if dh_last is None else dh_last.to(wide, copy=True)
        dh0[nonempty] = apply(_initial(a, reset, first[nonempty])[0].mT, g[0, first[nonempty]])
    return g.to(a.dtype).contiguous(), da, dh0
