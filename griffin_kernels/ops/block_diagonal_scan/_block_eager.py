"""What the eager variants share: reduce every form of the scan to one plain scan, and the backward to a forward.

A *core* is ``core(x, a, cut) -> h`` for x [B,T,H,n] and a [B,T,H,n,n] in the accumulator's dtype, from a zero state,
forward in time. Resets, packed sequences, h0 and direction are folded in before it:

    reset at t:                    cut_t
    a sequence starts at t:        x_t := x_t + A_t h0,  cut_t
    reverse:                       flip time

with cut as in ``linear_scan/_scan_eager.py``: bool [B or 1, T] or None, no earlier state is used where it is True.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call as BackwardCall
from griffin_kernels.ops.linear_scan._scan_eager import boundaries, cuts, previous, stops_at, unless

Core = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[..., H, n, n] times [..., H, n] or [..., H * n]; shaped as the vectors."""
    return torch.matmul(matrices, vectors.reshape(*matrices.shape[:-1], 1)).reshape(vectors.shape)


def sequential(x: Tensor, a: Tensor, cut: Tensor | None) -> Tensor:
    """The core that is right for every a: h [B,T,H,n], one batched multiply-add of matrices and vectors per step."""
    batch, time, blocks, size = x.shape
    columns = x.transpose(0, 1).reshape(time, batch * blocks, size, 1)
    h = torch.empty_like(columns, memory_format=torch.contiguous_format)
    h[0] = columns[0]
    for t in range(1, time):
        before = h[t - 1]
        if cut is not None:
            before = unless(cut[:, t], before.view(batch, blocks * size)).view(before.shape)
        torch.baddbmm(columns[t], a[:, t].reshape(-1, size, size), before, out=h[t])
    return h.view(time, batch, blocks, size).transpose(0, 1)


def forward(core: Core, call: Call) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan through ``core``. Returns h [B,T,D] and h_last [B or N, D]."""
    x, a, h0, reset, cu_seqlens, reverse = call
    wide = accumulator(x.dtype)
    matrices, values = a.to(wide), x.to(wide)
    cut = cuts(reset, cu_seqlens, x.shape[1], reverse)
    if cu_seqlens is None:
        if h0 is not None:
            at = x.shape[1] - 1 if reverse else 0
            values = values.clone()
            values[:, at] += apply(matrices[:, at], unless(stops_at(reset, at), h0.to(wide)))
        h = _directed(core, values, matrices, cut, reverse)
        h_last = h[:, 0 if reverse else -1].clone()
    else:
        first, last, nonempty = boundaries(cu_seqlens, reverse)
        if h0 is not None:
            values = values.clone()
            starts = first[nonempty]
            entering = unless(stops_at(reset, starts), h0[None, nonempty].to(wide))
            values[:, starts] += apply(matrices[:, starts], entering)
        h = _directed(core, values, matrices, cut, reverse)
        # a sequence without steps ends where it began
        h_last = h.new_zeros(nonempty.shape[0], x.shape[2]) if h0 is None else h0.to(wide, copy=True)
        h_last[nonempty] = h[0, last[nonempty]]
    return h.to(x.dtype).contiguous(), h_last


def _directed(core: Core, x: Tensor, a: Tensor, cut: Tensor | None, reverse: bool) -> Tensor:
    vectors = x.reshape(*a.shape[:-1])  # [B, T, H, n]
    if reverse:
        h = core(vectors.flip(1), a.flip(1), None if cut is None else cut.flip(1)).flip(1)
    else:
        h = core(vectors, a, cut)
    return h.reshape(x.shape)


def backward(core: Core, call: BackwardCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """block_diagonal_scan_bwd through ``core``: a scan in the other direction with A^T, one step later.

    Returns dx [B,T,D], da [B,T,H,n,n] and dh0 [B or N, D], or None where there was no h0.
    """
    dh, dh_last, a, h, h0, reset, cu_seqlens, reverse = call
    wide, time = accumulator(a.dtype), a.shape[1]
    incoming = dh.to(wide)
    if dh_last is not None:
        incoming = incoming.clone()
        if cu_seqlens is None:
            incoming[:, 0 if reverse else -1] += dh_last.to(wide)
        else:
            _, last, nonempty = boundaries(cu_seqlens, reverse)
            incoming[0, last[nonempty]] += dh_last[nonempty].to(wide)
    # in the order of the gradient, in which no step hands anything to the first; at a cut no matrix matters
    steps = torch.arange(time, device=a.device, dtype=torch.int64)
    steps = (steps - 1).clamp(min=0) if reverse else (time - steps).clamp(max=time - 1)
    cut = cuts(reset, cu_seqlens, time, reverse)
    ended = None if cut is None else cut[:, steps]
    shifted = unless(ended, a[:, steps].to(wide, copy=True))
    shifted[:, 0] = 0.0
    visited = incoming.reshape(*a.shape[:-1])
    g = core(visited if reverse else visited.flip(1), shifted.mT, ended)
    g = g if reverse else g.flip(1)  # [B, T, H, n]
    before = previous(h, h0, cu_seqlens, reverse)
    da = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    torch.mul(g[..., :, None], before.reshape(g.shape)[..., None, :], out=da)
    if reset is not None:
        da.masked_fill_(reset[..., None, None, None], 0.0)
    g = g.reshape(dh.shape)
    dh0 = None
    if h0 is not None and cu_seqlens is None:
        at = time - 1 if reverse else 0
        dh0 = unless(stops_at(reset, at), apply(a[:, at].to(wide).mT, g[:, at]))
    elif h0 is not None and cu_seqlens is not None:
        first, _, nonempty = boundaries(cu_seqlens, reverse)
        dh0 = torch.zeros(h0.shape, dtype=wide, device=a.device) if dh_last is None else dh_last.to(wide, copy=True)
        starts = first[nonempty]
        dh0[nonempty] = unless(stops_at(reset, starts), apply(a[:, starts].to(wide).mT, g[:, starts]))[0]
    return g.to(a.dtype).contiguous(), da, dh0
