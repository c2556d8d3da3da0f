"""Baseline: the Python loop over time that a user writes first.

    h_t = A_t h_{t-1} + x_t

One small einsum and one addition per step on copies in float32, and a list of states to stack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager
from griffin_kernels.ops.linear_scan._scan_eager import unless


def core(x: Tensor, a: Tensor, cut: Tensor | None, config: NoConfig) -> Tensor:
    """h [B,T,H,n] from x [B,T,H,n], a [B,T,H,n,n] and a zero state; see ``_scan_eager`` for cut."""
    carry = x[:, 0]
    states = [carry]
    for t in range(1, x.shape[1]):
        carry = unless(None if cut is None else cut[:, t], carry)
        carry = torch.einsum("bhjk,bhk->bhj", a[:, t], carry) + x[:, t]
        states.append(carry)
    return torch.stack(states, dim=1)


VARIANT = Variant(
    op="block_diagonal_scan",
    name="eager.loop",
    summary="the Python loop a user writes first",
    run=through(_scan_eager.forward, core),
    config=NoConfig,
    baseline=True,
)
