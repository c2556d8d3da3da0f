"""Autograd through the published Python loop: what training with that code costs. Its forward pass is not timed."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.rg_lru import eager_published as published
from griffin_kernels.ops.rg_lru.op import GATES, within
from griffin_kernels.ops.rg_lru_bwd.op import Call


def prepare(call: Call) -> Inputs:
    """The graph of the forward pass."""
    leaves = _autograd.leaves(call, ("x", *GATES), ("h0",))
    given = call._replace(**leaves)
    with torch.enable_grad():
        out, h_last = published.run(within(given, given.x))
    return _autograd.recorded([(out, call.dy), (h_last, call.dh_last)], list(leaves.values()))


def finish(gradients: tuple[Tensor, ...], call: Call) -> tuple[Tensor | None, ...]:
    return (*gradients, None) if call.h0 is None else gradients


ADAPTER = Adapter(prepare, _autograd.gradients, finish)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="eager.published",
    summary="autograd through the published loop, without its forward pass",
    config=NoConfig,
    baseline=True,
    adapter=ADAPTER,
)
