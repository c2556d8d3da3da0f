"""The published PyTorch code: gates, then a Python loop over time, two kernels a step.

Written anew after google-deepmind/recurrentgemma (torch) and transformers, which agree. Autograd sees through it, for
the baseline of the gradient. Four things differ. To be right in every dtype, gates are cast to float32 before exp (in
bfloat16 an a above 0.998 would become 1), and 1 - a^2 is -expm1(2 log a). What is not finite does not pass a reset:
values are selected there, where the published code multiplies by a mask. To keep training measurable, steps are unbound
and states stacked, where the published code indexes inputs and writes states step by step: that costs the same forward,
but in autograd one gradient of the whole sequence per step, T^2 in all, over 7 s for T 2048, D 2560 on two cores.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops.rg_lru.op import DECAY, Call, ClippedSqrt, resets


def run(call: Call, config: NoConfig | None = None) -> tuple[Tensor, Tensor]:
    """y [B,T,D] and h_last [B or N, D]."""
    x, a_param, input_weight, input_bias, recurrence_weight, recurrence_bias, h0, segment_pos, cu_seqlens = call
    wide = accumulator(x.dtype)
    blocks = x.reshape(*x.shape[:2], *input_bias.shape)  # [B, T, H, n]
    z_i = torch.einsum("bthi,hij->bthj", blocks, input_weight) + input_bias
    i = torch.sigmoid(z_i.flatten(2)).to(x.dtype)
    z_r = torch.einsum("bthi,hij->bthj", blocks, recurrence_weight) + recurrence_bias
    r = torch.sigmoid(z_r.flatten(2).to(wide))
    log_a = -DECAY * r * torch.nn.functional.softplus(a_param.to(wide))
    a = torch.exp(log_a)
    multiplier: Tensor = ClippedSqrt.apply(-torch.expm1(2 * log_a))
    reset = resets(call)
    if reset is not None:
        multiplier = torch.where(reset[..., None], 1.0, multiplier)
        a = torch.where(reset[..., None], 0.0, a)
    # with a = 0 alone a state that is not finite would pass the reset
    inner = None if segment_pos is None else segment_pos == 0
    u = x * i * multiplier.to(x.dtype)
    if cu_seqlens is None:
        return loop(u, a, None if h0 is None else h0.to(wide), inner)
    # packed sequences one after the other, as a user without packing would run them
    pieces, last = [], []
    offsets = cu_seqlens.tolist()
    for row, (start, end) in enumerate(itertools.pairwise(offsets)):
        state = u.new_zeros(1, u.shape[2], dtype=wide) if h0 is None else h0[row : row + 1].to(wide)
        piece, state = loop(u[:, start:end], a[:, start:end], state, None if inner is None else inner[:, start:end])
        pieces.append(piece)
        last.append(state)
    return torch.cat(pieces, dim=1), torch.cat(last)


def loop(u: Tensor, a: Tensor, h: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The Python loop over time; u [B,T,D] in the data's dtype, a and h in the accumulator's; reset bool [B,T]."""
    state = torch.zeros_like(a[:, 0]) if h is None else h
    states = []
    resets = [None] * a.shape[1] if reset is None else reset[..., None].unbind(1)
    for a_t, u_t, reset_t in zip(a.unbind(1), u.unbind(1), resets, strict=True):
        if reset_t is not None:
            state = torch.where(reset_t, 0.0, state)
        state = a_t * state + u_t.to(a.dtype)
        states.append(state.to(u.dtype))
    return torch.stack(states, dim=1) if states else torch.empty_like(u), state


VARIANT = Variant(
    op="rg_lru",
    name="eager.published",
    summary="the published code: a Python loop over time",
    run=run,
    config=NoConfig,
    baseline=True,
)
