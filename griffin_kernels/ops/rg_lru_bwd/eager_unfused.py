"""The analytic gradient: gates recomputed by batched products, the tuned scan's own backward, products for weights.

g, da = linear_scan_bwd(dy, a, y)        then the equations of op.py, elementwise in float32
dz is rounded to the data's dtype before x^T dz and dz W^T, as matrix products of that dtype take it
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant, accumulator
from griffin_kernels.ops import _products
from griffin_kernels.ops.linear_scan_bwd import op as scan_bwd
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru.op import DECAY, blockwise, sqrt_derivative
from griffin_kernels.ops.rg_lru_bwd.op import Call


def gradients(call: Call) -> tuple[Tensor, ...]:
    """All gradients in the op's order; dh0 has no elements where h0 is None."""
    x, blocks = call.x, call.input_gate_weight.shape[0]
    dx, dz_i, dz_r, da_param, dh0 = to_gates(call, _lru_eager.terms(call), DECAY)
    out = []
    columns = blockwise(x, blocks).transpose(1, 2)  # [H, n, B*T]
    gates = (
        (dz_i, call.input_gate_weight, call.input_gate_bias),
        (dz_r, call.recurrence_gate_weight, call.recurrence_gate_bias),
    )
    for dz, weight, bias in gates:
        rows = blockwise(dz.to(x.dtype), blocks)  # [H, B*T, n]
        dx.add_(_lru_eager.channelwise(_products.fastest(rows, weight.transpose(1, 2)), x))
        out += [_products.fastest(columns, rows).to(x.dtype), dz.sum((0, 1)).reshape(blocks, -1).to(bias.dtype)]
    return (dx.to(x.dtype), da_param.to(call.a_param.dtype), *out, dh0)


def to_gates(call: Any, terms: tuple[Tensor, ...], c: float) -> tuple[Tensor, ...]:
    """The part of dx that goes through no gate, dz_i, dz_r, da_param and dh0, all in the accumulator's dtype.

    terms: as ``_lru_eager.terms`` gives them, not needed any more. log a = -c softplus(a_param) r.
    """
    x = call.x
    wide = accumulator(x.dtype)
    i, r, log_a, v, m = terms
    a = log_a.exp_()
    reset = _lru_eager.inner_resets(call.segment_pos)
    dh_last, h0 = _lru_eager.wide_state(call.dh_last, a), _lru_eager.wide_state(call.h0, a)
    dy, y = call.dy.to(wide), call.y.to(wide)
    # the tuned one of this device
    scanned = scan_bwd.Call(dy, dh_last, a, y, h0, reset, call.cu_seqlens)
    g, da, dh0 = torch.ops.griffin_kernels.linear_scan_bwd(*scanned)
    # d log a = a da - 2 a^2 dm dsqrt, dm = g i x
    gx = g * x
    dlog_a = (gx * i).mul_(sqrt_derivative(v)).mul_(a).mul_(-2.0).add_(da).mul_(a).mul_(r)
    _lru_eager.fill_at_resets(dlog_a, 0.0, call)
    rate = -c * torch.nn.functional.softplus(call.a_param.to(wide))
    da_param = dlog_a.sum((0, 1)).mul_(-c).mul_(torch.sigmoid(call.a_param.to(wide)))
    dz_r = dlog_a.mul_(rate).mul_(1 - r)
    dz_i = gx.mul_(m).mul_(i).mul_(1 - i)
    return g.mul_(m).mul_(i), dz_i, dz_r, da_param, dh0


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    *found, dh0 = gradients(call)
    return (*found, None if call.h0 is None else dh0)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="eager.unfused",
    summary="analytic: gates recomputed, the tuned scan's backward, batched products",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    # four products and the scan's five streams, some twenty float32 passes of two or three streams
    traffic=lambda case, config: case["B"] * case["T"] * case["D"] * (14 * case.bytes_per_element() + 55 * 4),
)
