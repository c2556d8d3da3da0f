"""torch.compile of the analytic gradient: matrix products, generated elementwise kernels, the tuned scan's backward.

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
from griffin_kernels.ops.rg_lru_bwd.eager_unfused import gradients


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
    key = _compiled.kind_of(x, input_gate_bias, dh_last, h0, segment_pos, cu_seqlens)
    weights = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    with torch.no_grad():
        compiled = _compiled.compiled(gradients, key, dynamic=False)
        *found, dh0 = compiled(dy, dh_last, x, *weights, y, h0, segment_pos, cu_seqlens)
    return (*found, None if h0 is None else dh0)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    """A CPU needs a C++ compiler."""
    return _compiled.problem(device)


VARIANT = Variant(
    op="rg_lru_bwd",
    name="compiled.unfused",
    summary="torch.compile of the analytic gradient and the tuned scan's backward",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
)
