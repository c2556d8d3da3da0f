"""Baselines that let autograd make the gradient: the forward pass records the graph, and a call goes back through it.

A training step runs the forward pass anyway, so that it is prepared, and not timed as part of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from griffin_kernels.contract import Inputs


def recorded(targets: Sequence[tuple[Tensor, Tensor | None]], leaves: Sequence[Tensor]) -> Inputs:
    """The arguments of ``gradients``. targets: results of a forward pass with the gradient that reaches each, or None,
    of the same shape. leaves: what gradients are wanted of."""
    reached = [(target, upstream.to(target.dtype)) for target, upstream in targets if upstream is not None]
    return {"targets": [target for target, _ in reached], "leaves": leaves, "upstream": [grad for _, grad in reached]}


def gradients(targets: list[Tensor], leaves: list[Tensor], upstream: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of ``leaves``. The graph is kept: a timed call is one of many on the same arguments."""
    return torch.autograd.grad(targets, leaves, upstream, retain_graph=True)
