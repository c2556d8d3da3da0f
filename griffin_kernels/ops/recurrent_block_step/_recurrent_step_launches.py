"""What the hosts of the one-token block's Triton kernels share: one launch, or the convolution in one of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from griffin_kernels.contract import Variant, from_parts
from griffin_kernels.launch import Launch
from griffin_kernels.ops.recurrent_block_step.op import Call, convolution, recurrence
from griffin_kernels.ops.temporal_conv1d_step import _triton_conv_step as conv
from griffin_kernels.ops.temporal_conv1d_step import triton_rows


def steps(call: Call, outputs: dict[str, Any], config: Any) -> list[Launch]:
    """One launch where a program owns a gate block, or nothing is kept; else the convolution first.

    Programs that share a block all read what the convolution keeps, and none of them may move it.
    """
    outputs["conv_state"] = call.conv_state
    first = convolution(call)
    if call.conv_weight.shape[0] == 1 or call.input_gate_bias.shape[1] <= config.block_n:
        return [config.launch(recurrence(call, call.x), outputs, "out", call.y, conv.bundle(first))]
    between: dict[str, Any] = {}
    launches = conv.launches(first, between, triton_rows.Config())
    return [*launches, config.launch(recurrence(call, between["y"]), outputs, "out", call.y)]


def around(lru: Variant, **facts: Any) -> Variant:
    """The block's variant by the launch of one of rg_lru_step's. facts: what is its own."""
    return dataclasses.replace(lru, op="recurrent_block_step", run=from_parts, launches=steps, **facts)
