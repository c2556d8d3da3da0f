"""Autograd through the published code and its Python loop: training with it. The forward pass is not timed."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, accumulator
from griffin_kernels.ops import _autograd
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block.eager_published import VARIANT as FORWARD
from griffin_kernels.ops.recurrent_block_bwd.op import Call
from griffin_kernels.ops.rg_lru import eager_published as lru
from griffin_kernels.ops.rg_lru.op import within
from griffin_kernels.ops.temporal_conv1d import op as conv


def prepare(call: Call) -> Inputs:
    """The graph of the forward pass."""
    wide = accumulator(call.x.dtype)
    leaves = _autograd.leaves(call, ("x", "y", *forward.WEIGHTS), ("conv_state", "h0"))
    given = call._replace(**leaves)
    with torch.enable_grad():
        convolved = forward.convolution(given)
        widened = {name: getattr(convolved, name).to(wide) for name in ("x", "weight", "bias")}
        u, kept = conv.reference(convolved._replace(**widened))
        states, h_last = lru.run(within(given, u.to(call.x.dtype)))
        out = torch.nn.functional.gelu(given.y, approximate="tanh") * states
    targets = [(out, call.dout), (kept, call.dnew_conv_state), (h_last, call.dh_last)]
    return _autograd.recorded(targets, list(leaves.values()))


def finish(gradients: tuple[Tensor, ...], call: Call) -> tuple[Tensor | None, ...]:
    found = list(gradients)
    dh0 = None if call.h0 is None else found.pop()
    # a copy, as autograd cut it out of a tensor that holds dx too
    dconv_state = None if call.conv_state is None else found.pop().to(call.x.dtype, copy=True)
    return (*found, dconv_state, dh0)


VARIANT = backward_of(
    FORWARD,
    summary="autograd through the published loop, without its forward pass",
    adapter=Adapter(prepare, _autograd.gradients, finish),
)
