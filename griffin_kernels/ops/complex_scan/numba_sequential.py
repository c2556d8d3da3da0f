"""One pass over time, in native CPU code; a thread per block of complex channels of each sequence.

    h_t = a_t h_{t-1} + x_t

linear_scan's numba.sequential with two channels for each number: every real is read once and written once, 24 bytes a
number in float32, where block_diagonal_scan with matrices [[re, -im], [im, re]] has 32. Bound by DRAM as soon as there
are as many blocks as cores. A product is two multiply-adds of vectors and three shuffles within pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.complex_scan import _pair_calls
from griffin_kernels.ops.linear_scan import _scan_numba_call


@dataclass(frozen=True)
class Config:
    """block_d: complex channels of one work item. ahead: ask for the next row early; pays where rows are narrow."""

    block_d: int = 320
    ahead: bool = True


VARIANT = Variant(
    op="complex_scan",
    name="numba.sequential",
    summary="one pass in native code, threads over channels and sequences",
    run=_pair_calls.on_pairs(_scan_numba_call.forward),
    config=Config,
    axes={"block_d": (64, 160, 320, 640, 1280, 2048), "ahead": (False, True)},
    reject=unfit_cpu,
    rank=lambda case, device: 20,  # above every eager variant
)
