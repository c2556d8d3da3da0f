"""torch.compile of the analytic gradient: one generated kernel, as of a compiled training step."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, accumulator
from griffin_kernels.ops import _activation, _compiled
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import compiled_unfused as forward
from griffin_kernels.ops.gated_gelu_bwd.op import Call


def gradients(call: Call) -> tuple[Tensor, Tensor]:
    """dgate and dvalue, in the accumulator's dtype until they are rounded."""
    dtype = call.gate.dtype
    dout, gate, value = (tensor.to(accumulator(dtype)) for tensor in call)
    made, slope = _activation.gelu_and_slope(gate)
    return (dout * value * slope).to(dtype), (dout * made).to(dtype)


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        dgate, dvalue = _compiled.compiled(gradients, forward.layout_of(*call), dynamic=True)(call)
    return dgate, dvalue


VARIANT = backward_of(forward.VARIANT, run, summary="torch.compile of the analytic gradient")
