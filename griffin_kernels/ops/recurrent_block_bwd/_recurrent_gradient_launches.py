"""Convolution, RG-LRU's gradient with gelu's inside, and the convolution's gradient, as one list of launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block_bwd.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru.op import GATES
from griffin_kernels.ops.temporal_conv1d import triton_rows as conv
from griffin_kernels.ops.temporal_conv1d_bwd import triton_rows as conv_bwd


def launches(call: Call, outputs: dict[str, Any], config: Any, recurrent: Callable[..., list[Step]]) -> list[Step]:
    """u by the convolution; du, dy and the gates' gradients by ``recurrent``; dx and the taps' by the convolution's.

    recurrent: ``launches`` of a variant of rg_lru_bwd that takes a branch.
    """
    convolved: dict[str, Any] = {}
    steps: list[Step] = list(conv.launches(forward.convolution(call), convolved, conv.Config()))
    through: dict[str, Any] = {name: outputs.get(name) for name in (*(f"d{gate}" for gate in GATES), "dh0")}
    through |= {"dx": None, "dbranch": outputs.get("dy")}
    steps += recurrent(recurrence(call, call.dout, convolved["y"]), through, config, call.y)
    taps = ("weight", "bias", "state")
    conv_outputs = {"dx": outputs.get("dx")} | {f"d{name}": outputs.get(f"dconv_{name}") for name in taps}
    steps += conv_bwd.launches(convolution(call, through.pop("dx")), conv_outputs, conv_bwd.Config())
    outputs |= {"dx": conv_outputs["dx"], "dy": through.pop("dbranch"), **through}
    outputs |= {f"dconv_{name}": conv_outputs[f"d{name}"] for name in taps}
    return steps
