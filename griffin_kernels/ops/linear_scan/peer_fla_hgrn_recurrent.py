"""flash-linear-attention's recurrent HGRN kernel; see _peer.py. Its gates are logarithms: making them is not timed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.linear_scan import _peer

MODULE = "fla.ops.hgrn.fused_recurrent"


def prepare(inputs: Inputs) -> Inputs:
    return {"x": inputs["x"].contiguous(), "g": _peer.log_gates(inputs)}


def call(x: Tensor, g: Tensor) -> Any:
    return _peer.function(MODULE, "fused_recurrent_hgrn")(x, g, output_final_state=True)


def finish(results: Any, inputs: Inputs) -> tuple[Tensor | None, ...]:
    h, h_last = results
    return h, h_last.float()


ADAPTER = Adapter(prepare, call, finish)


def run(*, config: NoConfig, **inputs: Any) -> tuple[Tensor | None, ...]:
    return ADAPTER(inputs)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    return _peer.problem(case, device, amd=True, positive=True)


VARIANT = Variant(
    op="linear_scan",
    name="peer.fla_hgrn_recurrent",
    summary="flash-linear-attention's recurrent HGRN kernel",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
    package="fla",
)
