"""What the Triton forms of a recurrent block share: a pass of the convolution, then a kernel of rg_lru that also gates.

    u = temporal_conv1d(x);   h = rg_lru(u);   out = h gelu(y)

The convolution is a pass of its own because the gate products of one output channel sum over all channels of its block:
a program that owns 64 of 256 would convolve all 256, four times the multiply-adds, conversions and loads of the whole
convolution, in kernels that issue of instructions bounds already. u goes through memory once each way; gelu and the
product cost one more stream in, and h is written only where it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from griffin_kernels.contract import Case, Variant, from_parts
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block.op import Call, convolution
from griffin_kernels.ops.rg_lru._lru_launches import Branch
from griffin_kernels.ops.rg_lru.cost import cost
from griffin_kernels.ops.rg_lru.op import within
from griffin_kernels.ops.temporal_conv1d import triton_rows
from griffin_kernels.ops.temporal_conv1d._triton_conv import too_many_taps


def steps(call: Call, outputs: dict[str, Any], config: Any, recurrent: Callable[..., Sequence[Step]]) -> list[Step]:
    """The convolution's launch and those of ``recurrent``, a variant of rg_lru; fills ``outputs``."""
    convolved: dict[str, Any] = {"new_state": outputs.get("new_conv_state")}
    first = triton_rows.launches(convolution(call), convolved, triton_rows.Config())
    found = {"out": outputs.get("out"), "h_last": outputs.get("h_last"), "y": outputs.get("h")}
    then = recurrent(within(call, convolved["y"]), found, config, Branch(call.y, call.with_h))
    outputs |= {"out": found["out"], "new_conv_state": convolved["new_state"], "h_last": found["h_last"]}
    outputs["h"] = found["y"] if call.with_h else None
    return [*first, *then]


def around(lru: Variant, summary: str, launches: Callable[..., list[Step]] = steps) -> Variant:
    """The block around a Triton variant of rg_lru or its gradient, with its name, configurations and rank.

    launches: ``(call, outputs, config, recurrent)``; a gradient's ``recurrent`` takes a branch.
    """
    recurrent = lru.launches
    # moved besides what ``lru`` moves: the convolution's x and u, and y; or the branch and its gradient, two of the
    # convolution and three of its gradient
    streams = 7 if lru.op.endswith("_bwd") else 3

    def traffic(case: Case, config: Any) -> int:
        stream: int = case["B"] * case["T"] * case["D"] * case.bytes_per_element()
        return streams * stream + (cost(case).bytes_total if lru.traffic is None else lru.traffic(case, config))

    return dataclasses.replace(
        lru,
        op=lru.op.replace("rg_lru", "recurrent_block"),
        summary=summary,
        run=from_parts,
        reject=lambda case, device, config: too_many_taps(case) or lru.reject(case, device, config),
        launches=lambda call, outputs, config: launches(call, outputs, config, recurrent),
        traffic=traffic,
    )
