"""Autograd through attention with a T x S mask: what a user trains with. The forward pass is not timed."""

from __future__ import annotations

import torch

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig
from griffin_kernels.device import Device
from griffin_kernels.ops import _autograd
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.local_attention import _isolated, eager_masked
from griffin_kernels.ops.local_attention_bwd.op import Call, recorded


def prepare(call: Call) -> Inputs:
    """The graph of the forward pass."""
    forward, leaves = recorded(call)
    with torch.enable_grad():
        out, lse = eager_masked.attention(forward)
    targets = [(out, call.dout)] if lse is None else [(out, call.dout), (lse, call.dlse)]
    return _autograd.recorded(targets, leaves)


ADAPTER = Adapter(prepare, _autograd.gradients, lambda gradients, call: gradients)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """T x S scores have to fit where they are written out; else only the mask."""
    explicit = "softcap" in case.flags or "dlse" in case.data
    return eager_masked.out_of_memory(case, device, score_tensors=5 if explicit else 0)


VARIANT = backward_of(
    eager_masked.VARIANT,
    _isolated.backward(lambda call, config: ADAPTER(call)),
    summary="autograd through scaled_dot_product_attention with a T x S mask, without its forward pass",
    reject=reject,
    adapter=ADAPTER,
)
