"""The gradient in one pass against time, in native CPU code; see block_diagonal_scan/numba_sequential.py.

dh, h and a are read once, dx and da written once: 2 n + 3 data elements per element of h. The sum over a matrix's
column needs fewer shuffles than the one over its row: for n = 16 none.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops.block_diagonal_scan import _numba_call
from griffin_kernels.ops.block_diagonal_scan.numba_sequential import Config, rank, reject


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
    return _numba_call.backward(dh, dh_last, a, h, h0, reset, cu_seqlens, reverse, config.block_d)


VARIANT = Variant(
    op="block_diagonal_scan_bwd",
    name="numba.sequential",
    summary="one pass in native code, threads over groups of blocks and sequences",
    run=run,
    config=Config,
    axes={"block_d": (64, 320, 640, 1280, 2560)},
    reject=reject,
    rank=rank,
)
