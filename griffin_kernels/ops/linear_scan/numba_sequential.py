"""One pass over time, in native CPU code; a thread per block of channels of each sequence.

    h_t = a_t * h_{t-1} + x_t

The state of a block stays in the first-level cache while time goes by a row of the block at a time, so each element is
read once and written once: bound by DRAM as soon as there are as many blocks as cores. Rows are vectors of float32
(float64); bfloat16 and float16 are converted in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.linear_scan import _scan_numba_call


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item. Wide rows suit the processor's prefetcher, narrow ones give more items.
    ahead: ask for the next row early; pays where rows are narrow.
    """

    block_d: int = 640
    ahead: bool = True


VARIANT = Variant(
    op="linear_scan",
    name="numba.sequential",
    summary="one pass in native code, threads over channels and sequences",
    run=_scan_numba_call.gates,
    config=Config,
    axes={"block_d": (128, 256, 640, 1280, 2048, 2560, 4096), "ahead": (False, True)},
    reject=unfit_cpu,
    rank=lambda case, device: 20,  # above every eager variant
)
