"""Arguments that the Triton kernels of linear_scan share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Inputs, accumulator
from griffin_kernels.ops._triton.host import (
    channel_stride,
    empty,
    flags_of,
    row_stride,
    rows_of,
    signed_step,
    time_strides,
    wide,
)
from griffin_kernels.ops._triton.tensors import rows, state


def scan_bundles(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
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


def scan_arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last."""
    x, a, h0, reset, cu_seqlens, reverse = (inputs[name] for name in ("x", "a", "h0", "reset", "cu_seqlens", "reverse"))
    batch, time, width = x.shape
    count = rows_of(inputs, batch)
    args = {
        "x": x,
        "a": a,
        "h0": h0,
        "reset": flags_of(reset),
        "cu_seqlens": cu_seqlens,
        "h": empty(outputs, "h", x, batch, time, width, dtype=x.dtype),
        "h_last": empty(outputs, "h_last", x, count, width, dtype=accumulator(x.dtype)),
        "T": time,
        "x_batch": row_stride(x, 0),
        "a_batch": row_stride(a, 0),
        "reset_batch": row_stride(reset, 0),
        "h0_row": row_stride(h0, 0),
    }
    constexprs = {
        "D": width,
        **time_strides("X", x, reverse),
        **time_strides("A", a, reverse),
        "RESET_STEP": signed_step(reset, reverse),
        "H0_CHANNEL": channel_stride(h0),
        "REVERSE": reverse,
        "ACC": wide(x.dtype),
    }
    return count, args, constexprs
