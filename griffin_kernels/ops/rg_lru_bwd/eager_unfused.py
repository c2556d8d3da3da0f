"""The analytic gradient: gates recomputed by batched products, the tuned scan's own backward, products for weights.

g, da = linear_scan_bwd(dy, a, y)        then the equations of op.py, elementwise in float32
dz is rounded to the data's dtype before x^T dz and dz W^T, as matrix products of that dtype take it
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant, accumulator
from griffin_kernels.ops import _products
from griffin_kernels.ops.rg_lru import _gates
from griffin_kernels.ops.rg_lru.op import DECAY, sqrt_derivative


def scan_backward(
    dy: Tensor,
    dh_last: Tensor | None,
    a: Tensor,
    h: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tuned linear_scan_bwd of this device; dh0 has no elements where h0 is None."""
    reset = _gates.inner_resets(segment_pos)
    g, da, dh0 = torch.ops.griffin_kernels.linear_scan_bwd(
        dy, _gates.wide_state(dh_last, a), a, h, _gates.wide_state(h0, a), reset, cu_seqlens, False
    )
    return g, da, dh0


def gradients(
    dy: Tensor,
    dh_last: Tensor | None,
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    y: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """All gradients in the op's order; dh0 has no elements where h0 is None."""
    wide = accumulator(x.dtype)
    blocks = input_gate_weight.shape[0]
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    i, r, log_a, v, m = _gates.terms(x, *weights, h0, segment_pos, cu_seqlens)
    a = log_a.exp_()
    g, da, dh0 = scan_backward(dy.to(wide), dh_last, a, y.to(wide), h0, segment_pos, cu_seqlens)
    # d log a = a da - 2 a^2 dm dsqrt, dm = g i x
    gx = g * x
    dlog_a = (gx * i).mul_(sqrt_derivative(v)).mul_(a).mul_(-2.0).add_(da).mul_(a).mul_(r)
    _gates.fill_at_resets(dlog_a, 0.0, h0, segment_pos, cu_seqlens)
    rate = -DECAY * torch.nn.functional.softplus(a_param.to(wide))
    da_param = dlog_a.sum((0, 1)).mul_(-DECAY).mul_(torch.sigmoid(a_param.to(wide)))
    dz_r = dlog_a.mul_(rate).mul_(1 - r)
    dz_i = gx.mul_(m).mul_(i).mul_(1 - i)
    dx = g.mul_(m).mul_(i)
    out = []
    columns = _gates.blockwise(x, blocks).transpose(1, 2)  # [H, n, B*T]
    for dz, weight in ((dz_i, input_gate_weight), (dz_r, recurrence_gate_weight)):
        rows = _gates.blockwise(dz.to(x.dtype), blocks)  # [H, B*T, n]
        dx.add_(_gates.channelwise(_products.fastest(rows, weight.transpose(1, 2)), x))
        out += [_products.fastest(columns, rows).to(x.dtype), dz.sum((0, 1)).reshape(blocks, -1).to(x.dtype)]
    return (dx.to(x.dtype), da_param.to(x.dtype), *out, dh0)


def run(
    dy: Tensor,
    dh_last: Tensor | None,
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    y: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor | None, ...]:
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    *found, dh0 = gradients(dy, dh_last, x, *weights, y, h0, segment_pos, cu_seqlens)
    return (*found, None if h0 is None else dh0)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: four products and the scan's five streams, some twenty float32 passes of two or three streams."""
    elements = case["B"] * case["T"] * case["D"]
    return elements * (14 * case.bytes_per_element() + 55 * 4)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="eager.unfused",
    summary="analytic: gates recomputed, the tuned scan's backward, batched products",
    run=run,
    config=NoConfig,
    rank=lambda case, device: 10,
    traffic=traffic,
)
