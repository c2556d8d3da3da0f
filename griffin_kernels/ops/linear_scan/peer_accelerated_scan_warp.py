"""accelerated-scan's CUDA kernel of warps; see _peer.py. Its layout, time last, is not timed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Case, Inputs, NoConfig, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.linear_scan import _peer

MODULE = "accelerated_scan.warp"


def prepare(inputs: Inputs) -> Inputs:
    return {"gates": _peer.time_last(_peer.gates(inputs)), "tokens": _peer.time_last(inputs["x"])}


def call(gates: Tensor, tokens: Tensor) -> Any:
    return _peer.function(MODULE, "scan")(gates, tokens)


ADAPTER = Adapter(prepare, call, _peer.finish_time_last)


def run(*, config: NoConfig, **inputs: Any) -> tuple[Tensor | None, ...]:
    return ADAPTER(inputs)


def reject(case: Case, device: Device, config: NoConfig) -> str | None:
    return _peer.warp_problem(case, device)


VARIANT = Variant(
    op="linear_scan",
    name="peer.accelerated_scan_warp",
    summary="accelerated-scan's CUDA kernel of warps",
    run=run,
    config=NoConfig,
    reject=reject,
    baseline=True,
    adapter=ADAPTER,
    package="accelerated_scan",
    slack=_peer.SLACK,
)
