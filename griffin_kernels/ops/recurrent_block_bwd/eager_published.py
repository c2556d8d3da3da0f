"""Autograd through the published code, Python loop and forward pass included: what training with it costs."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops.rg_lru import _published
from griffin_kernels.ops.temporal_conv1d import op as conv


def run(
    dout: Tensor,
    dnew_conv_state: Tensor | None,
    dh_last: Tensor | None,
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h: Tensor,
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    wide = accumulator(x.dtype)
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    leaves = [value.detach().requires_grad_() for value in (x, y, conv_weight, conv_bias, *gates)]
    before, state = (None if t is None else t.to(wide, copy=True).requires_grad_() for t in (conv_state, h0))
    with torch.enable_grad():
        inputs, branch, taps, bias, a, w_i, b_i, w_r, b_r = leaves
        u, kept = conv.reference(inputs.to(wide), taps.to(wide), bias.to(wide), before, segment_pos, cu_seqlens)
        states, h_last = _published.rg_lru(u.to(x.dtype), a, w_i, b_i, w_r, b_r, state, segment_pos, cu_seqlens)
        out = torch.nn.functional.gelu(branch, approximate="tanh") * states
    wanted = leaves + [t for t in (before, state) if t is not None]
    pairs = [(out, dout), (kept, dnew_conv_state), (h_last, dh_last)]
    targets, upstream = zip(*((t, g.to(t.dtype)) for t, g in pairs if g is not None), strict=True)
    found = iter(torch.autograd.grad(targets, wanted, upstream))
    given = [next(found) for _ in leaves]
    # a copy, as autograd cut it out of a tensor that holds dx too
    dconv_state = None if before is None else next(found).to(x.dtype, copy=True)
    return (*given, dconv_state, None if state is None else next(found))


VARIANT = Variant(
    op="recurrent_block_bwd",
    name="eager.published",
    summary="autograd through the published loop, forward pass included",
    run=run,
    config=NoConfig,
    baseline=True,
)
