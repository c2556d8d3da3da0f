"""The gradient with time cut into chunks, in native CPU code; see linear_scan/numba_chunked.py.

The first phase needs only dh and a: over a chunk, visited against time, the carry goes from c to P c + L with P the
product of a. dh and a are read twice.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.ops.linear_scan import _numba_call
from griffin_kernels.ops.linear_scan.numba_chunked import Config, rank
from griffin_kernels.ops.linear_scan.numba_sequential import reject


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
    return _numba_call.backward(
        dh, dh_last, a, h, h0, reset, cu_seqlens, reverse, config.block_d, config.ahead, config.chunk
    )


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: dh and a twice, h, dx and da once."""
    streams = 5 if case["T"] <= config.chunk else 7
    return streams * case["B"] * case["T"] * case["D"] * case.bytes_per_element()


VARIANT = Variant(
    op="linear_scan_bwd",
    name="numba.chunked",
    summary="three phases in native code, threads over time too",
    run=run,
    config=Config,
    axes={"block_d": (640, 4096), "ahead": (False, True), "chunk": (16, 64, 256, 1024)},
    reject=reject,
    rank=rank,
    traffic=traffic,
)
