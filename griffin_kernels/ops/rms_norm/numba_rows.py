"""One pass over every row in native CPU code; a thread per piece of rows.

    s = x + residual;   y = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)

A row is read twice: once for its squares, which are summed in four vectors side by side, and once, from the first
cache, to be scaled. Sums are float32, the root is float64. Two streams from memory, four with a residual, which is
added on the first way; weights are read as they are. Bound by DRAM where rows are many, by the call where they are few.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.rms_norm import _norm_numba_call


@dataclass(frozen=True)
class Config:
    """block_t: rows of one work item."""

    block_t: int = 64


VARIANT = Variant(
    op="rms_norm",
    name="numba.rows",
    summary="one pass over every row in native code",
    run=_norm_numba_call.forward,
    config=Config,
    axes={"block_t": (16, 64, 256)},
    reject=unfit_cpu,
    rank=lambda case, device: 20,
)
