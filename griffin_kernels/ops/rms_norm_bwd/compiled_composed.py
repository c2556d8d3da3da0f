"""torch.compile of the gradient's equations: a kernel for rows and one for the weights' sums."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rms_norm_bwd.eager_composed import gradients
from griffin_kernels.ops.rms_norm_bwd.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    *tensors, eps, offset = call
    with torch.no_grad():
        dx, dweight = _compiled.compiled(gradients, (*_compiled.kind_of(*tensors), eps, offset), dynamic=False)(call)
    return dx, dweight


VARIANT = Variant(
    op="rms_norm_bwd",
    name="compiled.composed",
    summary="torch.compile of the equations",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
