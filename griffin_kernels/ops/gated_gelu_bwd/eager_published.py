"""What autograd makes of the published code: two products and PyTorch's kernel of gelu's gradient.

    dvalue = dout gelu(gate),   dgate = gelu_backward(dout value, gate)

gelu(gate) was kept by the forward pass, so that it is prepared and not timed: it costs memory instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs
from griffin_kernels.ops import _activation
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import eager_published as forward
from griffin_kernels.ops.gated_gelu_bwd.op import Call


def prepare(call: Call) -> Inputs:
    """What the forward pass kept, and what reaches its output."""
    return call._asdict() | {"made": torch.nn.functional.gelu(call.gate, approximate="tanh")}


def gradients(dout: Tensor, gate: Tensor, value: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """dgate and dvalue, each product rounded to the data's dtype."""
    return _activation.through("gelu", dout * value, gate), dout * made


def finish(result: Any, call: Any) -> tuple[Tensor | None, ...]:
    """The two gradients."""
    return tuple(result)


VARIANT = backward_of(
    forward.VARIANT,
    summary="autograd of the published code, gelu kept",
    adapter=Adapter(prepare, gradients, finish),
    traffic=None,
)
