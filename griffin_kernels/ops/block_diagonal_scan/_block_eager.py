"""What the eager variants share: reduce every form of the scan to one plain scan, and the backward to a forward.

A *core* is ``core(x, a, cut) -> h`` for x [B,T,H,n] and a [B,T,H,n,n] in the accumulator's dtype, from a zero state,
forward in time. Resets, packed sequences, h0 and direction are folded in before it as in linear_scan/_scan_eager.py,
with A_t h0 in place of a_t h0; cut is as there: bool [B or 1, T] or None, no earlier state is used where it is True.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops._variants import backward_of, through
from griffin_kernels.ops.block_diagonal_scan.op import Call
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call as BackwardCall
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan._scan_eager import unless

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


def flat(core: Core) -> Core:
    """The core on x and h [B,T,D]."""
    return lambda x, a, cut: core(x.reshape(a.shape[:-1]), a, cut).reshape(x.shape)


def forward(core: Core, call: Call) -> tuple[Tensor, Tensor]:
    """block_diagonal_scan through ``core``. Returns h [B,T,D] and h_last [B or N, D]."""
    return _scan_eager.forward(flat(core), call, _matrices(call.a))


def backward(core: Core, call: BackwardCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """block_diagonal_scan_bwd through ``core``: a scan in the other direction with A^T, one step later.

    Returns dx [B,T,D], da [B,T,H,n,n] and dh0 [B or N, D], or None where there was no h0.
    """
    return _scan_eager.backward(flat(core), call, _matrices(call.a))


def _matrices(a: Tensor) -> _scan_eager.Products:
    """Products of a [B,T,H,n,n]."""

    def outer(g: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
        rows, columns = g.reshape(a.shape[:-1]), before.reshape(a.shape[:-1])
        return torch.mul(
            rows[..., :, None], columns[..., None, :], out=torch.empty(a.shape, dtype=dtype, device=g.device)
        )

    return _scan_eager.Products(apply, lambda matrices: matrices.mT, outer)


def gradient_of(form: Any) -> Variant:
    """The variant of block_diagonal_scan_bwd that has the core of a form of block_diagonal_scan, a module."""
    return backward_of(form.VARIANT, through(backward, form.core_of))
