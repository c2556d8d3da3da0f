"""torch.compile of the unfused form: one generated elementwise kernel, the tuned scan.

What a user gets who compiles a model that uses this package's linear_scan, which the compiler calls and does not look
into. Compiled once per shape; see rg_lru/compiled_unfused.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rg_lru import _lru_eager
from griffin_kernels.ops.rg_lru_gated import _gated_eager
from griffin_kernels.ops.rg_lru_gated.op import Call


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    i, _, log_a, _, m = _gated_eager.terms(call)
    return _lru_eager.scan(m * i * call.x, torch.exp(log_a), call)


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    key = (*_compiled.kind_of(call.x, call.a_param, call.h0, call.segment_pos, call.cu_seqlens), call.c)
    with torch.no_grad():
        y, h_last = _compiled.compiled(_forward, key, dynamic=False)(call)
    return y, h_last


VARIANT = Variant(
    op="rg_lru_gated",
    name="compiled.unfused",
    summary="torch.compile of the elementwise steps, and the tuned scan",
    run=run,
    config=NoConfig,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
