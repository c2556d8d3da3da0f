"""torch.compile of the composition: one generated kernel, or two.

What a user gets who compiles a model with a norm written in PyTorch. Compiled once per shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rms_norm.eager_composed import forward
from griffin_kernels.ops.rms_norm.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor | None]:
    key = (*_compiled.kind_of(call.x, call.weight, call.residual), call.eps, call.weight_offset)
    with torch.no_grad():
        y, s = _compiled.compiled(forward, key, dynamic=False)(call)
    return y, s


VARIANT = Variant(
    op="rms_norm",
    name="compiled.composed",
    summary="torch.compile of the composition",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
