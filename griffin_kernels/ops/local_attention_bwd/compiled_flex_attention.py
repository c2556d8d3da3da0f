"""Autograd through compiled flex_attention; see local_attention/_flex.py. GPUs only. The forward pass is not timed."""

from __future__ import annotations

import torch
import torch._functorch.config as functorch

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.local_attention import _flex, _isolated
from griffin_kernels.ops.local_attention_bwd.op import Call, recorded


def prepare(call: Call) -> Inputs:
    """The graph of the forward pass."""
    forward, leaves = recorded(call)
    # a graph that is gone back several times must not give its buffers away in the first pass
    with torch.enable_grad(), functorch.patch(donated_buffer=False):
        out, _ = _flex.call(**_flex.prepare(forward))
    return _autograd.recorded([(out, call.dout.transpose(1, 2))], leaves)


ADAPTER = Adapter(prepare, _autograd.gradients, lambda gradients, call: gradients)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU has the forward pass only."""
    if device.kind == "cpu":
        return "flex_attention has no backward pass on a CPU"
    return _flex.problem(case, device)


VARIANT = Variant(
    op="local_attention_bwd",
    name="compiled.flex_attention",
    summary="autograd through compiled flex_attention, without its forward pass",
    run=_isolated.backward(lambda call, config: ADAPTER(call)),
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
)
