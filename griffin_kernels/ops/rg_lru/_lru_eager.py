"""What the unfused variants share: gates by batched matrix products, their elementwise parts, the tuned scan by name.

The scan is reached as ``torch.ops.griffin_kernels.linear_scan``, the operator that ``griffin_kernels`` registers, so
that these variants use whichever scan is fastest on the device without importing it.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _products
from griffin_kernels.ops.linear_scan import op as linear
from griffin_kernels.ops.rg_lru.op import DECAY, blockwise, is_fresh, resets

importlib.import_module("griffin_kernels.functional")  # registers the scan; by name, since kernels import nothing above


def channelwise(values: Tensor, like: Tensor) -> Tensor:
    """[H, B*T, n] -> [B,T,D], contiguous."""
    return values.transpose(0, 1).reshape(like.shape)


def gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sigmoid(x W + b) [B,T,D] in the accumulator's dtype; x [B,T,D], weight [H,n,n], bias [H,n]."""
    wide = accumulator(x.dtype)
    z = channelwise(_products.fastest(blockwise(x, weight.shape[0]), weight), x)
    return z.to(wide).add_(bias.to(wide).flatten()).sigmoid_()


def one_minus_exp(exponent: Tensor) -> Tensor:
    """1 - exp(exponent) without cancellation, exponent <= 0 and not needed any more."""
    if not torch.compiler.is_compiling():
        return exponent.expm1_().neg_()
    # inductor's vector code for a CPU makes exp(y) - 1 of expm1: near 0 the Taylor series takes its place
    series = torch.ones_like(exponent)
    for k in range(15 if exponent.dtype == torch.float64 else 8, 1, -1):
        series = series * (exponent / k) + 1.0
    return torch.where(exponent > -0.5, -exponent * series, 1.0 - exponent.exp())


def terms(call: Any) -> tuple[Tensor, ...]:
    """i, r, log a, v = 1 - a^2 and the multiplier m, each [B,T,D] in the accumulator's dtype; m is 1 at a reset."""
    i = gate(call.x, call.input_gate_weight, call.input_gate_bias)
    r = gate(call.x, call.recurrence_gate_weight, call.recurrence_gate_bias)
    return terms_of(call, i, r, DECAY)


def terms_of(call: Any, i: Tensor, r: Tensor, c: float) -> tuple[Tensor, ...]:
    """As ``terms``, by the gates, with log a = -c softplus(a_param) r."""
    log_a = r * (-c * torch.nn.functional.softplus(call.a_param.to(r.dtype)))
    v = one_minus_exp(2 * log_a)
    return i, r, log_a, v, fill_at_resets(v.sqrt(), 1.0, call)


def fill_at_resets(values: Tensor, value: float, call: Any) -> Tensor:
    """values [B,T,D], set to ``value`` in place where a document begins."""
    if call.cu_seqlens is None and is_fresh(call.h0, call.segment_pos):
        values[:, :1] = value
    elif (reset := resets(call)) is not None:
        values.masked_fill_(reset[..., None], value)
    return values


def inner_resets(segment_pos: Tensor | None) -> Tensor | None:
    """bool [B,T], or None: the resets that a scan has to be told of. First steps, without h0, see zeros anyway."""
    return None if segment_pos is None else segment_pos == 0


def scan(x: Tensor, a: Tensor, call: Any) -> tuple[Tensor, Tensor]:
    """The tuned linear_scan of this device. Returns y in the call's dtype and h_last."""
    h, h_last = wide_scan(x, a, call)
    return h.to(call.x.dtype), h_last


def wide_scan(x: Tensor, a: Tensor, call: Any) -> tuple[Tensor, Tensor]:
    """As ``scan``, with y in the accumulator's dtype."""
    reset = inner_resets(call.segment_pos)
    scanned = linear.Call(x, a, wide_state(call.h0, x), reset, call.cu_seqlens)
    h, h_last, _ = torch.ops.griffin_kernels.linear_scan(*scanned)
    return h, h_last


def wide_state(h0: Tensor | None, like: Tensor) -> Tensor | None:
    """h0 in the dtype that a scan over ``like`` takes for states."""
    return None if h0 is None else h0.to(like.dtype)
