"""Baseline: the Python loop over time that the published PyTorch code runs.

    h_t = a_t * h_{t-1} + x_t

Two operations per step on float32 copies and a list of states to stack, as in google-deepmind/recurrentgemma
(torch/layers.py, rnn_scan) and in the RG-LRU of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops._variants import through
from griffin_kernels.ops.linear_scan import _scan_eager


def core(x: Tensor, a: Tensor, cut: Tensor | None, config: NoConfig) -> Tensor:
    """h [B,T,D] from x, a [B,T,D] and a zero state; see ``_scan_eager`` for cut."""
    carry = torch.zeros_like(x[:, 0])
    states = []
    for t in range(x.shape[1]):
        carry = a[:, t] * _scan_eager.unless(None if cut is None else cut[:, t], carry) + x[:, t]
        states.append(carry)
    return torch.stack(states, dim=1)


VARIANT = Variant(
    op="linear_scan",
    name="eager.loop",
    summary="the published Python loop",
    run=through(_scan_eager.forward_and_product, core),
    config=NoConfig,
    baseline=True,
)
