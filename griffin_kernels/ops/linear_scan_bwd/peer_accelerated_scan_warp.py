"""The gradient of accelerated-scan's CUDA kernel of warps; see linear_scan/_peer.py. Layouts are not timed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant
from griffin_kernels.ops._peer import Saved
from griffin_kernels.ops.linear_scan import _peer
from griffin_kernels.ops.linear_scan.peer_accelerated_scan_warp import MODULE
from griffin_kernels.ops.linear_scan.peer_accelerated_scan_warp import VARIANT as FORWARD


def prepare(inputs: Inputs) -> Inputs:
    """What the forward pass keeps."""
    gates, states = _peer.time_last(_peer.gates(inputs)), _peer.time_last(inputs["h"])
    return {"saved": Saved(states, gates), "dh": _peer.time_last(_peer.upstream(inputs))}


def call(saved: Saved, dh: Tensor) -> Any:
    return _peer.function(MODULE, "Scan").backward(saved, dh)


def finish(gradients: Any, inputs: Inputs) -> tuple[Tensor | None, ...]:
    da, dx = (values.transpose(1, 2).contiguous() for values in gradients)
    return _peer.finish_gradients(dx, da, inputs)


ADAPTER = Adapter(prepare, call, finish)


def run(*, config: NoConfig, **inputs: Any) -> tuple[Tensor | None, ...]:
    return ADAPTER(inputs)


VARIANT = Variant(
    op="linear_scan_bwd",
    name=FORWARD.name,
    summary=FORWARD.summary,
    run=run,
    config=NoConfig,
    reject=FORWARD.reject,
    baseline=True,
    adapter=ADAPTER,
    package=FORWARD.package,
    slack=FORWARD.slack,
)
