"""What the hosts of the Triton scans of gradients share, of gates and of matrices."""

from __future__ import annotations

from typing import Any

from griffin_kernels.contract import accumulator
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.tensors import dense_state, rows, state
from griffin_kernels.ops.linear_scan._scan_launches import Arguments, steps_of
from griffin_kernels.ops.linear_scan.op import rows_of
from griffin_kernels.ops.linear_scan_bwd._triton_scan_gradient import GradientStreams


def gradient_arguments(call: Any, outputs: dict[str, Any]) -> Arguments:
    """(N, arguments, constexprs) of a kernel that does the whole backward scan; allocates dx, da, dh0.

    Steps are in backward order: the sign of every ``Rows.step`` is opposite to the forward pass's.
    """
    dh, dh_last, a, h, h0, reset, cu_seqlens, reverse = call
    count, back = rows_of(a.shape[0], cu_seqlens), not reverse
    if h0 is None:
        outputs["dh0"] = None
    else:
        host.empty(outputs, "dh0", a, count, dh.shape[2], dtype=accumulator(a.dtype))
    written = [host.empty(outputs, name, a, *like.shape, dtype=a.dtype) for name, like in (("dx", dh), ("da", a))]
    args = {
        "given": GradientStreams(rows(dh, back), steps_of(a, back), rows(h, back), rows(reset, back), *written),
        "dh_last": state(dh_last),
        "h0": state(h0),
        "cu_seqlens": cu_seqlens,
        "dh0": dense_state(outputs["dh0"]),
        "T": a.shape[1],
    }
    return count, args, {"REVERSE": reverse, "ACC": host.wide(a.dtype)}
