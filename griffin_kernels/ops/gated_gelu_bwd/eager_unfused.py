"""gelu again, PyTorch's kernel of its gradient, and three products, in the accumulator's dtype. Works everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, accumulator
from griffin_kernels.ops import _activation
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import eager_unfused as forward
from griffin_kernels.ops.gated_gelu.cost import elements
from griffin_kernels.ops.gated_gelu_bwd.op import Call


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    dtype = call.gate.dtype
    dout, gate, value = (tensor.to(accumulator(dtype)) for tensor in call)
    dvalue = torch.nn.functional.gelu(gate, approximate="tanh").mul_(dout)
    return _activation.through("gelu", dout * value, gate).to(dtype), dvalue.to(dtype)


def traffic(case: Case, config: NoConfig) -> int:
    """Bytes moved: 11 streams, and of 16-bit data 5 tensors to widen or round."""
    each = 8 if case.dtype == "float64" else 4
    return elements(case) * (11 * each + (5 * (2 + 4) if case.half else 0))


VARIANT = backward_of(
    forward.VARIANT, run, summary="gelu again, its gradient and three products in float32", traffic=traffic
)
