"""Autograd through the published code and its Python loop: training with it. The forward pass is not timed."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant, accumulator
from griffin_kernels.ops import _autograd
from griffin_kernels.ops.rg_lru import _published
from griffin_kernels.ops.rg_lru.op import GATES
from griffin_kernels.ops.temporal_conv1d import op as conv


def prepare(inputs: Inputs) -> Inputs:
    """The graph of the forward pass."""
    x = inputs["x"]
    wide = accumulator(x.dtype)
    named = ("x", "y", "conv_weight", "conv_bias", *GATES)
    leaves: list[Tensor] = [inputs[name].detach().requires_grad_() for name in named]
    before, state = (
        None if inputs[name] is None else inputs[name].to(wide, copy=True).requires_grad_()
        for name in ("conv_state", "h0")
    )
    documents = inputs["segment_pos"], inputs["cu_seqlens"]
    with torch.enable_grad():
        tokens, branch, taps, bias, a, w_i, b_i, w_r, b_r = leaves
        u, kept = conv.reference(conv.Call(tokens.to(wide), taps.to(wide), bias.to(wide), before, *documents))
        states, h_last = _published.rg_lru(u.to(x.dtype), a, w_i, b_i, w_r, b_r, state, *documents)
        out = torch.nn.functional.gelu(branch, approximate="tanh") * states
    targets = [(out, inputs["dout"]), (kept, inputs["dnew_conv_state"]), (h_last, inputs["dh_last"])]
    return _autograd.recorded(targets, leaves + [t for t in (before, state) if t is not None])


def finish(gradients: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor | None, ...]:
    found = list(gradients)
    dh0 = None if inputs["h0"] is None else found.pop()
    # a copy, as autograd cut it out of a tensor that holds dx too
    dconv_state = None if inputs["conv_state"] is None else found.pop().to(inputs["x"].dtype, copy=True)
    return (*found, dconv_state, dh0)


ADAPTER = Adapter(prepare, _autograd.gradients, finish)


VARIANT = Variant(
    op="recurrent_block_bwd",
    name="eager.published",
    summary="autograd through the published loop, without its forward pass",
    config=NoConfig,
    baseline=True,
    adapter=ADAPTER,
)
