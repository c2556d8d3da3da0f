"""The gradient in one pass against time, in native CPU code; see linear_scan/numba_sequential.py.

Five streams: dh, a and h are read once, dx and da written once. The carry is what flows into the step before.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops.linear_scan import _numba_call
from griffin_kernels.ops.linear_scan.numba_sequential import Config, rank, reject


def run(
    dh: Tensor,
    dh_last: Tensor | None,
    a: Tensor,
    h: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    *,
    config: Config,
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _numba_call.backward(dh, dh_last, a, h, h0, reset, cu_seqlens, reverse, config.block_d, config.ahead)


VARIANT = Variant(
    op="linear_scan_bwd",
    name="numba.sequential",
    summary="one pass in native code, threads over channels and sequences",
    run=run,
    config=Config,
    axes={"block_d": (128, 256, 640, 1280, 2048, 2560, 4096), "ahead": (False, True)},
    reject=reject,
    rank=rank,
)
