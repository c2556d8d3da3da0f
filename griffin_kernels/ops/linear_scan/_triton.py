"""Arguments that the Triton kernels of linear_scan share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Inputs, accumulator
from griffin_kernels.ops._triton.host import (
    empty,
    rows_of,
    wide,
)
from griffin_kernels.ops._triton.tensors import rows, state


def scan_arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last."""
    x, reverse = inputs["x"], inputs["reverse"]
    batch, time, width = x.shape
    count = rows_of(inputs, batch)
    args = {
        "x": rows(x, reverse),
        "a": rows(inputs["a"], reverse),
        "h0": state(inputs["h0"]),
        "reset": rows(inputs["reset"], reverse),
        "cu_seqlens": inputs["cu_seqlens"],
        "h": empty(outputs, "h", x, batch, time, width, dtype=x.dtype),
        "h_last": empty(outputs, "h_last", x, count, width, dtype=accumulator(x.dtype)),
        "T": time,
    }
    return count, args, {"D": width, "REVERSE": reverse, "ACC": wide(x.dtype)}
