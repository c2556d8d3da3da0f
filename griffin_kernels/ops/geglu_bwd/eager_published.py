"""gated_gelu_bwd/eager_published.py on the halves, and the copy that autograd of two chunks ends with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu_bwd import eager_published as apart
from griffin_kernels.ops.geglu import eager_published as forward
from griffin_kernels.ops.geglu_bwd.op import Call, halves


def prepare(call: Call) -> Inputs:
    """What the forward pass kept, and what reaches its output."""
    return apart.prepare(halves(call))


def gradients(**kept: Tensor) -> Tensor:
    """dx [B,T,2,D]."""
    return torch.stack(apart.gradients(**kept), dim=2)


def finish(result: Any, call: Any) -> tuple[Tensor | None, ...]:
    """The only gradient."""
    return (result,)


VARIANT = backward_of(
    forward.VARIANT, summary=apart.VARIANT.summary, adapter=Adapter(prepare, gradients, finish), traffic=None
)
