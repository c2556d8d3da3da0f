"""Arguments that the Triton kernels of linear_scan share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._triton.host import empty, wide
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan._triton_scan import Streams
from griffin_kernels.ops.linear_scan.op import Call, rows_of


def scan_arguments(call: Call, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole forward scan; allocates h and h_last."""
    x, a, h0, reset, cu_seqlens, reverse = call
    count, width = rows_of(x.shape[0], cu_seqlens), x.shape[2]
    h_last = empty(outputs, "h_last", x, count, width, dtype=accumulator(x.dtype))
    h = empty(outputs, "h", x, *x.shape, dtype=x.dtype)
    args = {
        "given": Streams(rows(x, reverse), rows(a, reverse), rows(reset, reverse), h),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "h_last": dense_state(h_last),
        "T": x.shape[1],
    }
    return count, args, {"D": width, "REVERSE": reverse, "ACC": wide(x.dtype)}
