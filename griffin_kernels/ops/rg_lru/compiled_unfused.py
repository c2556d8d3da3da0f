"""torch.compile of the unfused form: matrix products, one generated elementwise kernel, the tuned scan.

What a user gets who compiles a model that uses this package's linear_scan. The scan is an operator that the compiler
calls and does not look into. Compiled once per shape, as the first call of a process is: were shapes symbolic from the
second on, the code would depend on what else was called before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru.op import Call


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    i, _, log_a, _, m = _lru_eager.terms(call)
    return _lru_eager.scan(m * i * call.x, torch.exp(log_a), call)


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    key = _compiled.kind_of(call.x, call.input_gate_bias, call.h0, call.segment_pos, call.cu_seqlens)
    with torch.no_grad():
        y, h_last = _compiled.compiled(_forward, key, dynamic=False)(call)
    return y, h_last


VARIANT = Variant(
    op="rg_lru",
    name="compiled.unfused",
    summary="torch.compile of gate products, elementwise steps and the tuned scan",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
