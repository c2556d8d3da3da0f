"""Autograd through compiled flex_attention, on GPUs only. The forward pass is not timed."""

from __future__ import annotations

import torch
import torch._functorch.config as functorch

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig
from griffin_kernels.device import Device
from griffin_kernels.ops import _autograd
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _isolated
from griffin_kernels.ops.local_attention import compiled_flex_attention as flex
from griffin_kernels.ops.local_attention_bwd.op import Call, recorded


def prepare(call: Call) -> Inputs:
    """The graph of the forward pass."""
    forward, leaves = recorded(call)
    # a graph that is gone back several times must not give its buffers away in the first pass
    with torch.enable_grad(), functorch.patch(donated_buffer=False):
        out, _ = flex.call(**flex.prepare(forward))
    return _autograd.recorded([(out, call.dout.transpose(1, 2))], leaves)


ADAPTER = Adapter(prepare, _autograd.gradients, lambda gradients, call: gradients)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU has the forward pass only."""
    if device.kind == "cpu":
        return "flex_attention has no backward pass on a CPU"
    if "dlse" in case.data:
        return "what reaches lse is no part of what users of flex_attention train with"
    return flex.problem(case, device)


VARIANT = backward_of(
    flex.VARIANT,
    _isolated.backward(lambda call, config: ADAPTER(call)),
    summary="autograd through compiled flex_attention, without its forward pass",
    reject=reject,
    adapter=ADAPTER,
)
