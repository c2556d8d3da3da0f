"""Arguments that the Triton kernels of linear_scan_bwd share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._triton.host import empty, wide
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import GradientStreams
from griffin_kernels.ops.linear_scan_bwd.op import Call


def scan_arguments(call: Call, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``Rows.step`` is opposite to the forward pass's.
    """
    a, width = call.a, call.a.shape[2]
    count = rows_of(a.shape[0], call.cu_seqlens)
    if call.h0 is None:
        outputs["dh0"] = None
    else:
        empty(outputs, "dh0", a, count, width, dtype=accumulator(a.dtype))
    read = [rows(tensor, not call.reverse) for tensor in (call.dh, a, call.h, call.reset)]
    written = [empty(outputs, name, a, *a.shape, dtype=a.dtype) for name in ("dx", "da")]
    args = {
        "given": GradientStreams(*read, *written),
        "dh_last": state(call.dh_last),
        "h0": state(call.h0),
        "cu_seqlens": call.cu_seqlens,
        "dh0": dense_state(outputs["dh0"]),
        "T": a.shape[1],
    }
    return count, args, {"D": width, "REVERSE": call.reverse, "ACC": wide(a.dtype)}
