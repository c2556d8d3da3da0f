"""The gradient of flash-linear-attention's recurrent HGRN kernel; see linear_scan/_peer.py.

It is that of log a: making it one of a is not timed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.contract import Adapter, Inputs, NoConfig, Variant
from griffin_kernels.ops._peer import Saved
from griffin_kernels.ops.linear_scan import _peer
from griffin_kernels.ops.linear_scan.peer_fla_hgrn_recurrent import MODULE
from griffin_kernels.ops.linear_scan.peer_fla_hgrn_recurrent import VARIANT as FORWARD


def prepare(inputs: Inputs) -> Inputs:
    """What the forward pass keeps."""
    saved = Saved(_peer.log_gates(inputs), inputs["h"].contiguous(), None, cu_seqlens=None)
    return {"saved": saved, "dh": _peer.upstream(inputs)}


def call(saved: Saved, dh: Tensor) -> Any:
    return _peer.function(MODULE, "FusedRecurrentHGRNFunction").backward(saved, dh, None)


def finish(gradients: Any, inputs: Inputs) -> tuple[Tensor | None, ...]:
    dx, dg, *_ = gradients
    return _peer.finish_gradients(dx, dg / inputs["a"].float(), inputs)


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
)
