"""Arguments that the Triton kernels of linear_scan_bwd share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import Inputs, accumulator
from griffin_kernels.ops._triton import host as forward


def scan_arguments(inputs: Inputs, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``<NAME>_STEP`` is opposite to the forward pass's.
    """
    names = ("dh", "dh_last", "a", "h", "h0", "reset", "cu_seqlens", "reverse")
    dh, dh_last, a, h, h0, reset, cu_seqlens, reverse = (inputs[name] for name in names)
    batch, time, width = a.shape
    rows = forward.rows_of(inputs, batch)
    if h0 is None:
        outputs["dh0"] = None
    args = {
        "dh": dh,
        "dh_last": dh_last,
        "a": a,
        "h": h,
        "h0": h0,
        "reset": forward.flags_of(reset),
        "cu_seqlens": cu_seqlens,
        "dx": forward.empty(outputs, "dx", a, batch, time, width, dtype=a.dtype),
        "da": forward.empty(outputs, "da", a, batch, time, width, dtype=a.dtype),
        "dh0": None if h0 is None else forward.empty(outputs, "dh0", a, rows, width, dtype=accumulator(a.dtype)),
        "T": time,
        "dh_batch": forward.row_stride(dh, 0),
        "a_batch": forward.row_stride(a, 0),
        "h_batch": forward.row_stride(h, 0),
        "reset_batch": forward.row_stride(reset, 0),
        "dh_last_row": forward.row_stride(dh_last, 0),
        "h0_row": forward.row_stride(h0, 0),
    }
    constexprs = {
        "D": width,
        **forward.time_strides("DH", dh, not reverse),
        **forward.time_strides("A", a, not reverse),
        **forward.time_strides("H", h, not reverse),
        "RESET_STEP": forward.signed_step(reset, not reverse),
        "DH_LAST_CHANNEL": forward.channel_stride(dh_last),
        "H0_CHANNEL": forward.channel_stride(h0),
        "REVERSE": reverse,
        "ACC": forward.wide(a.dtype),
    }
    return rows, args, constexprs
