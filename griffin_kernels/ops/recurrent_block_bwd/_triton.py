"""Convolution, RG-LRU's gradient with gelu's inside, and the convolution's gradient, as one list of launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs
from griffin_kernels.launch import Step
from griffin_kernels.ops.recurrent_block_bwd.op import OP
from griffin_kernels.ops.rg_lru.cost import make_case
from griffin_kernels.ops.temporal_conv1d import triton_rows as conv
from griffin_kernels.ops.temporal_conv1d_bwd import triton_rows as conv_bwd

GATES = ("a_param", "input_gate_weight", "input_gate_bias", "recurrence_gate_weight", "recurrence_gate_bias")


def launches(inputs: Inputs, outputs: dict[str, Any], config: Any, recurrent: Callable[..., list[Step]]) -> list[Step]:
    """u by the convolution; du, dy and the gates' gradients by ``recurrent``; dx and the taps' by the convolution's.

    recurrent: ``launches`` of a variant of rg_lru_bwd that takes a branch.
    """
    around = {name: inputs[name] for name in ("segment_pos", "cu_seqlens")}
    conv_inputs = {"x": inputs["x"], "weight": inputs["conv_weight"], "state": inputs["conv_state"], **around}
    convolved: dict[str, Any] = {}
    steps: list[Step] = list(conv.launches(conv_inputs | {"bias": inputs["conv_bias"]}, convolved, conv.Config()))
    scan_inputs = {
        "dy": inputs["dout"],
        "x": convolved["y"],
        "y": inputs["h"],
        "branch": inputs["y"],
        **{name: inputs[name] for name in ("dh_last", *GATES, "h0")},
        **around,
    }
    through = {name: outputs.get(name) for name in (*(f"d{gate}" for gate in GATES), "dh0")}
    through |= {"dx": None, "dbranch": outputs.get("dy")}
    steps += recurrent(scan_inputs, through, config)
    conv_outputs = {
        "dx": outputs.get("dx"),
        "dweight": outputs.get("dconv_weight"),
        "dbias": outputs.get("dconv_bias"),
        "dstate": outputs.get("dconv_state"),
    }
    conv_inputs |= {"dy": through.pop("dx"), "dnew_state": inputs["dnew_conv_state"]}
    steps += conv_bwd.launches(conv_inputs, conv_outputs, conv_bwd.Config())
    outputs |= {"dx": conv_outputs["dx"], "dy": through.pop("dbranch"), **through}
    outputs |= {f"dconv_{name}": conv_outputs[f"d{name}"] for name in ("weight", "bias", "state")}
    return steps


def run(make: Callable[..., list[Step]], config: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
    """Run the steps of a variant on the op's arguments, in order."""
    outputs: dict[str, Any] = {}
    launch.run_all(make(dict(zip(OP.inputs, arguments, strict=True)), outputs, config))
    return tuple(outputs[name] for name in OP.outputs)


def recurrent_case(case: Case) -> Case:
    """The gradient of RG-LRU that a case holds."""
    return make_case(
        case["B"], case["T"], case["D"], case["H"], case.dtype, case.flags, rows=case["N"], op="rg_lru_bwd"
    )


def traffic(case: Case, recurrent: int) -> int:
    """Bytes moved: RG-LRU's, the branch and its gradient, two streams of the convolution and three of its gradient."""
    return recurrent + 7 * case["B"] * case["T"] * case["D"] * case.bytes_per_element()
