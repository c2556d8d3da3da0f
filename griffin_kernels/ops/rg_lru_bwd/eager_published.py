"""Autograd through the published Python loop: what training with that code costs. Its forward pass is not timed."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant, accumulator
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.rg_lru import _published
from griffin_kernels.ops.rg_lru.op import GATES


def prepare(inputs: Inputs) -> Inputs:
    """The graph of the forward pass."""
    x, h0 = inputs["x"], inputs["h0"]
    wide = accumulator(x.dtype)
    leaves = [value.detach().requires_grad_() for value in (x, *(inputs[name] for name in GATES))]
    state = None if h0 is None else h0.to(wide, copy=True).requires_grad_()
    given: Inputs = dict(zip(("x", *GATES), leaves, strict=True))
    with torch.enable_grad():
        out, h_last = _published.rg_lru(
            **given, h0=state, segment_pos=inputs["segment_pos"], cu_seqlens=inputs["cu_seqlens"]
        )
    targets = [(out, inputs["dy"]), (h_last, inputs["dh_last"])]
    return _autograd.recorded(targets, leaves if state is None else [*leaves, state])


def finish(gradients: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor | None, ...]:
    return (*gradients, None) if inputs["h0"] is None else gradients


ADAPTER = Adapter(prepare, _autograd.gradients, finish)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="eager.published",
    summary="autograd through the published loop, without its forward pass",
    config=NoConfig,
    baseline=True,
    adapter=ADAPTER,
)
