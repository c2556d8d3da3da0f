"""The Triton launches of complex_scan and its gradient: those of linear_scan, of two channels for each number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from griffin_kernels.contract import accumulator
from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.complex_scan.op import flat
from griffin_kernels.ops.linear_scan.op import rows_of

Launches = Callable[[Any, dict[str, Any], Any], list[Launch]]


def forward(launches: Launches) -> Launches:
    """Launches of linear_scan, for a call of pairs; they are given outputs with flat numbers."""

    def of_pairs(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
        x, count = call.x, rows_of(call.x.shape[0], call.cu_seqlens)
        h = host.empty(outputs, "h", x, *x.shape, dtype=x.dtype)
        h_last = host.empty(outputs, "h_last", x, count, *x.shape[2:], dtype=accumulator(x.dtype))
        return launches(flat(call), {"h": h.flatten(2), "h_last": h_last.flatten(1)}, config)

    return of_pairs


def backward(launches: Launches) -> Launches:
    """Launches of linear_scan_bwd, likewise."""

    def of_pairs(call: Any, outputs: dict[str, Any], config: Any) -> list[Launch]:
        a, count = call.a, rows_of(call.a.shape[0], call.cu_seqlens)
        dx, da = (host.empty(outputs, name, a, *a.shape, dtype=a.dtype) for name in ("dx", "da"))
        flattened = {"dx": dx.flatten(2), "da": da}
        if call.h0 is None:
            outputs["dh0"] = None
        else:
            dh0 = host.empty(outputs, "dh0", a, count, *a.shape[2:], dtype=accumulator(a.dtype))
            flattened["dh0"] = dh0.flatten(1)
        return launches(flat(call), flattened, config)

    return of_pairs
