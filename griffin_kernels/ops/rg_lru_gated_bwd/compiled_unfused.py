"""torch.compile of the analytic gradient: generated elementwise kernels, the tuned scan's backward."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rg_lru_gated_bwd.eager_unfused import gradients
from griffin_kernels.ops.rg_lru_gated_bwd.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    *tensors, c = call
    with torch.no_grad():
        *found, dh0 = _compiled.compiled(gradients, (*_compiled.kind_of(*tensors), c), dynamic=False)(call)
    return (*found, None if call.h0 is None else dh0)


VARIANT = Variant(
    op="rg_lru_gated_bwd",
    name="compiled.unfused",
    summary="torch.compile of the analytic gradient and the tuned scan's backward",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
