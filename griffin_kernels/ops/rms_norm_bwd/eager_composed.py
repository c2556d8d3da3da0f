"""The equations of the gradient in PyTorch's float32 operations, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, accumulator
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.rms_norm import eager_composed as forward
from griffin_kernels.ops.rms_norm_bwd.op import Call


def gradients(call: Call) -> tuple[Tensor, Tensor]:
    """dx and dweight, differentiable."""
    dy, ds, x, weight, eps, offset = call
    wide = accumulator(x.dtype)
    values, grad = x.to(wide), dy.to(wide)
    r = torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    normed, g = values * r, grad * (offset + weight.to(wide))
    dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
    dx = dx if ds is None else dx + ds
    return dx.to(x.dtype), (grad * normed).sum((0, 1)).to(weight.dtype)


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    return gradients(call)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: 22 streams of float32, three more for ds, and casts of three tensors where data are narrower."""
    elements = case["B"] * case["T"] * case["D"]
    wide = max(case.bytes_per_element(), 4)
    # x^2 2, mean 1, normed 2, g 2, g normed 3, mean 1, normed mean 2, difference 3, r times that 2, dy normed 3, sum 1
    streams = 22 + (3 if "residual" in case.flags else 0)
    return elements * (streams * wide + (3 * (wide + case.bytes_per_element()) if case.half else 0))


VARIANT = backward_of(forward.VARIANT, run, summary="the equations in float32, step by step", traffic=traffic)
