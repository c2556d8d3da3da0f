"""Arguments that the Triton kernels of block_diagonal_scan_bwd share."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.block_diagonal_scan._block_launches import matrices
from griffin_kernels.ops.block_diagonal_scan_bwd.op import Call
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import GradientStreams


def scan_arguments(call: Call, outputs: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``Rows.step`` is opposite to the forward pass's.
    """
    dh, a, back = call.dh, call.a, not call.reverse
    count = rows_of(a.shape[0], call.cu_seqlens)
    if call.h0 is None:
        outputs["dh0"] = None
    else:
        host.empty(outputs, "dh0", a, count, dh.shape[2], dtype=accumulator(a.dtype))
    written = [host.empty(outputs, name, a, *like.shape, dtype=a.dtype) for name, like in (("dx", dh), ("da", a))]
    args = {
        "given": GradientStreams(
            rows(dh, back), matrices(a, back), rows(call.h, back), rows(call.reset, back), *written
        ),
        "dh_last": state(call.dh_last),
        "h0": state(call.h0),
        "cu_seqlens": call.cu_seqlens,
        "dh0": dense_state(outputs["dh0"]),
        "T": a.shape[1],
    }
    return count, args, {"REVERSE": call.reverse, "ACC": host.wide(a.dtype)}
