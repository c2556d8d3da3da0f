"""Baselines that let autograd make the gradient: the forward pass records the graph, and a call goes back through it.

A training step runs the forward pass anyway, so that it is prepared, and not timed as part of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Inputs, accumulator


def leaves(call: Any, names: Sequence[str], states: Sequence[str]) -> dict[str, Tensor]:
    """Arguments of a call by name that gradients are wanted of; states, where given, in the accumulator's dtype."""
    found: dict[str, Tensor] = {name: getattr(call, name).detach().requires_grad_() for name in names}
    for name in states:
        if (state := getattr(call, name)) is not None:
            found[name] = state.to(accumulator(call.x.dtype), copy=True).requires_grad_()
    return found


def recorded(targets: Sequence[tuple[Tensor, Tensor | None]], leaves: Sequence[Tensor]) -> Inputs:
    """The arguments of ``gradients``. targets: results of a forward pass with the gradient that reaches each, or None,
    of the same shape. leaves: what gradients are wanted of."""
    reached = [(target, upstream.to(target.dtype)) for target, upstream in targets if upstream is not None]
    return {"targets": [target for target, _ in reached], "leaves": leaves, "upstream": [grad for _, grad in reached]}


def gradients(targets: list[Tensor], leaves: list[Tensor], upstream: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of ``leaves``. The graph is kept: a timed call is one of many on the same arguments."""
    return torch.autograd.grad(targets, leaves, upstream, retain_graph=True)
