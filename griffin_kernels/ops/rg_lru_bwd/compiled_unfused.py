"""torch.compile of the analytic gradient: matrix products, generated elementwise kernels, the tuned scan's backward.

What a user gets who compiles a model that uses this package's linear_scan. The scan is an operator that the compiler
calls and does not look into. Compiled once per shape, as the first call of a process is: were shapes symbolic from the
second on, the code would depend on what else was called before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rg_lru_bwd.eager_unfused import gradients
from griffin_kernels.ops.rg_lru_bwd.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor | None, ...]:
    key = _compiled.kind_of(*call)
    with torch.no_grad():
        *found, dh0 = _compiled.compiled(gradients, key, dynamic=False)(call)
    return (*found, None if call.h0 is None else dh0)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="compiled.unfused",
    summary="torch.compile of the analytic gradient and the tuned scan's backward",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
