"""What the hosts of rg_lru_gated's Triton variants share: arguments of rg_lru's kernels, with the gates given."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from griffin_kernels.ops._triton.strides import constant
from griffin_kernels.ops.rg_lru import _lru_launches as lru
from griffin_kernels.ops.rg_lru._triton_lru import Parameters


def gates(call: Any) -> tuple[Tensor, Tensor]:
    """Both pre-activations [B,T,D]."""
    return call.input_gate, call.recurrence_gate


def parameters(call: Any) -> Parameters:
    """What kernels are told of the gates besides pre-activations."""
    return Parameters(call.a_param.contiguous(), None, None, None, None, scale=-call.c / math.log(2))


def arguments(call: Any, outputs: dict[str, Any], config: Any) -> dict[str, Any]:
    """Arguments of rg_lru's kernels that go over time."""
    args = lru.arguments(call, outputs, config, None, gates(call), parameters(call))
    return args | {"shape": args["shape"]._replace(fast=constant(False))}
