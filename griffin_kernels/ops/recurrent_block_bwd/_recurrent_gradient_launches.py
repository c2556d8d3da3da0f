"""Convolution, RG-LRU's gradient with gelu's inside, and the convolution's gradient, as one list of launches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from griffin_kernels.contract import Case, Variant, from_parts
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block import op as forward
from griffin_kernels.ops.recurrent_block_bwd.op import Call, convolution, recurrence
from griffin_kernels.ops.rg_lru.cost import make_case
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


def recurrent_case(case: Case) -> Case:
    """The gradient of RG-LRU that a case holds."""
    return make_case(
        case["B"], case["T"], case["D"], case["H"], case.dtype, case.flags, rows=case["N"], op="rg_lru_bwd"
    )


def around(lru: Variant, summary: str) -> Variant:
    """The gradient around a Triton variant of rg_lru_bwd that takes a branch: its name, configurations and rank."""
    assert lru.launches is not None
    recurrent = lru.launches

    def steps(call: Call, outputs: dict[str, Any], config: Any) -> list[Step]:
        return launches(call, outputs, config, recurrent)

    def traffic(case: Case, config: Any) -> int:
        """Bytes: RG-LRU's, the branch and its gradient, two streams of the convolution and three of its gradient."""
        assert lru.traffic is not None
        stream: int = case["B"] * case["T"] * case["D"] * case.bytes_per_element()
        return lru.traffic(recurrent_case(case), config) + 7 * stream

    return dataclasses.replace(
        lru,
        op="recurrent_block_bwd",
        summary=summary,
        run=from_parts,
        reject=lambda case, device, config: lru.reject(recurrent_case(case), device, config),
        rank=lambda case, device: lru.rank(recurrent_case(case), device),
        launches=steps,
        traffic=traffic,
    )
