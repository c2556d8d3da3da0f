"""What the Triton forms of a recurrent block share: a pass of the convolution, then a kernel of rg_lru that also gates.

    u = temporal_conv1d(x);   h = rg_lru(u);   out = h gelu(y)

The convolution is a pass of its own because the gate products of one output channel sum over all channels of its block:
a program that owns 64 of 256 would convolve all 256, four times the multiply-adds, conversions and loads of the whole
convolution, in kernels that issue of instructions bounds already. u goes through memory once each way; gelu and the
product cost one more stream in, and h is written only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from griffin_kernels import launch
from griffin_kernels.contract import Case, Inputs
from griffin_kernels.device import Device
from griffin_kernels.launch import Step
from griffin_kernels.ops.rg_lru import _triton as lru
from griffin_kernels.ops.rg_lru.cost import make_case
from griffin_kernels.ops.temporal_conv1d import triton_rows
from griffin_kernels.ops.temporal_conv1d._triton import MOST_TAPS

NAMES = ("x", "y", "conv_weight", "conv_bias", *lru.NAMES[1:6], "conv_state", *lru.NAMES[6:], "with_h")
"""The op's arguments, in order."""


def steps(
    inputs: Inputs,
    outputs: dict[str, Any],
    config: Any,
    recurrent: Callable[[Inputs, dict[str, Any], Any], Sequence[Step]],
) -> list[Step]:
    """The convolution's launch and those of ``recurrent``, a variant of rg_lru; fills ``outputs``."""
    convolved: dict[str, Any] = {"new_state": outputs.get("new_conv_state")}
    first = triton_rows.launches(
        {
            "x": inputs["x"],
            "weight": inputs["conv_weight"],
            "bias": inputs["conv_bias"],
            "state": inputs["conv_state"],
            "segment_pos": inputs["segment_pos"],
            "cu_seqlens": inputs["cu_seqlens"],
        },
        convolved,
        triton_rows.Config(),
    )
    found = {"out": outputs.get("out"), "h_last": outputs.get("h_last"), "y": outputs.get("h")}
    arguments = {name: inputs[name] for name in lru.NAMES}
    arguments |= {"x": convolved["y"], "branch": inputs["y"], "with_h": inputs["with_h"]}
    then = recurrent(arguments, found, config)
    outputs |= {"out": found["out"], "new_conv_state": convolved["new_state"], "h_last": found["h_last"]}
    outputs["h"] = found["y"] if inputs["with_h"] else None
    return [*first, *then]


def run(make: Callable[..., list[Step]], config: Any, *values: Tensor | bool | None) -> tuple[Tensor | None, ...]:
    """Run the steps of a variant on the op's arguments, in order."""
    outputs: dict[str, Any] = {}
    launch.run_all(make(dict(zip(NAMES, values, strict=True)), outputs, config))
    return outputs["out"], outputs["new_conv_state"], outputs["h_last"], outputs["h"]


def lru_case(case: Case) -> Case:
    """The rg_lru within."""
    sizes = (case["B"], case["T"], case["D"], case["H"])
    return make_case(*sizes, case.dtype, case.flags, rows=case["N"], data=case.data, tag=case.tag)


def reject(case: Case, device: Device, config: Any, recurrent: Callable[[Case, Device, Any], str | None]) -> str | None:
    """Why either piece cannot run, if so."""
    if case["K"] > MOST_TAPS:
        return f"{case['K']} taps are more than the {MOST_TAPS} that are unrolled"
    return recurrent(lru_case(case), device, config)


def traffic(case: Case, bytes_of_lru: int) -> int:
    """Bytes of both passes: the convolution's x and u, what rg_lru moves with u for its x, and y."""
    stream: int = case["B"] * case["T"] * case["D"] * case.bytes_per_element()
    return 3 * stream + bytes_of_lru
