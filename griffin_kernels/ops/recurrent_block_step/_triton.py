"""What the hosts of the one-token block's Triton kernels share: one launch, or the convolution in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from griffin_kernels.contract import Inputs
from griffin_kernels.launch import Launch
from griffin_kernels.ops.rg_lru_step import _triton as lru
from griffin_kernels.ops.temporal_conv1d_step import triton_rows
from griffin_kernels.ops.temporal_conv1d_step.op import Call


def steps(make: Callable[..., Launch], inputs: Inputs, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """One launch where a program owns a gate block, or nothing is kept; else the convolution first.

    Programs that share a block all read what the convolution keeps, and none of them may move it.
    """
    x, taps = inputs["x"], inputs["conv_weight"].shape[0]
    outputs["conv_state"] = inputs["conv_state"]
    if taps == 1 or lru.parts(inputs["input_gate_bias"].shape[1], config.block_n) == 1:
        return [make(inputs, outputs, "out", config, x, taps)]
    between: dict[str, Any] = {}
    names = ("conv_weight", "conv_bias", "conv_state", "positions", "slots")
    first = triton_rows.launches(Call(x, *[inputs[name] for name in names]), between, triton_rows.Config())
    return [*first, make(inputs, outputs, "out", config, between["y"])]
