"""One batched multiply-add of matrices and vectors per time step, written straight into the output.

    h_t = A_t h_{t-1} + x_t

Like the plain loop, but a single kernel per step and no list of states to stack. T launches of B * D * n products:
bound by launch latency unless B * D * n is large. Works on every device, dtype and n; the fallback that cannot fail.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.block_diagonal_scan import _eager


def core(x: Tensor, a: Tensor) -> Tensor:
    """h [B,T,H,n] from x [B,T,H,n], a [B,T,H,n,n] and a zero state."""
    batch, time, blocks, size = x.shape
    columns = x.transpose(0, 1).reshape(time, batch * blocks, size, 1)
    h = torch.empty_like(columns, memory_format=torch.contiguous_format)
    h[0] = columns[0]
    for t in range(1, time):
        torch.baddbmm(columns[t], a[:, t].reshape(-1, size, size), h[t - 1], out=h[t])
    return h.view(time, batch, blocks, size).transpose(0, 1)


def run(
    x: Tensor,
    a: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor]:
    return _eager.forward(core, x, a, h0, reset, cu_seqlens, reverse)


def rank(case: Case, device: Device) -> int:
    """Long sequences want fewer launches."""
    return 10 if case["T"] <= 64 else 5


VARIANT = Variant(
    op="block_diagonal_scan",
    name="eager.sequential",
    summary="one batched matrix-vector multiply-add per step",
    run=run,
    config=NoConfig,
    rank=rank,
)
