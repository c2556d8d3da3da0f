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
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan._scan_eager import unless


def core(x: Tensor, a: Tensor, cut: Tensor | None, config: NoConfig) -> Tensor:
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


def rank(case: Case, device: Device) -> int:
    """Long sequences want fewer launches."""
    return 10 if case["T"] <= 64 else 5


VARIANT = Variant(
    op="block_diagonal_scan",
    name="eager.sequential",
    summary="one batched matrix-vector multiply-add per step",
    run=through(_scan_eager.forward, core),
    config=NoConfig,
    rank=rank,
)
