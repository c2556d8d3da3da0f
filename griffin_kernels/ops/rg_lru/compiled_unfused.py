"""torch.compile of the unfused form: matrix products, one generated elementwise kernel, the tuned scan.

What a user gets who compiles a model that uses this package's linear_scan. The scan is an operator that the compiler
calls and does not look into. Compiled once per shape, as the first call of a process is: were shapes symbolic from the
second on, the code would depend on what else was called before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.rg_lru import _gates


def _forward(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    i, _, log_a, _, m = _gates.terms(x, *weights, h0, segment_pos, cu_seqlens)
    h, h_last = _gates.scan(m * i * x, torch.exp(log_a), h0, segment_pos, cu_seqlens)
    return h.to(x.dtype), h_last


def run(
    x: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    config: NoConfig,
) -> tuple[Tensor, Tensor]:
    key = _compiled.kind_of(x, input_gate_bias, h0, segment_pos, cu_seqlens)
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    with torch.no_grad():
        y, h_last = _compiled.compiled(_forward, key, dynamic=False)(x, *weights, h0, segment_pos, cu_seqlens)
    return y, h_last


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU needs a C++ compiler."""
    return _compiled.problem(device)


VARIANT = Variant(
    op="rg_lru",
    name="compiled.unfused",
    summary="torch.compile of gate products, elementwise steps and the tuned scan",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
