"""One pass over time, in native CPU code; a thread per group of blocks of each sequence.

    h_t = A_t h_{t-1} + x_t

The state of a group stays in the first-level cache while time goes by a row at a time, so each element of x and a is
read once and h written once: n + 2 data elements per element of h, nearly all of them a, in long contiguous runs. Bound
by DRAM as soon as there are as many groups as cores. One multiply and one addition per element of a, in vectors of
float32 (float64); the sum over a matrix's row is a tree of additions and constant shuffles (see _scan_lanes.py of
linear_scan); bfloat16 and float16 are converted in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.linear_scan import _scan_numba_call

MOST = 32
"""The largest n: a kernel is written out for all n * n elements of a block."""


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item at most; fewer where threads would have none. Long runs of a read fastest."""

    block_d: int = 2560


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Shared by the numba variants of both ops."""
    if reason := unfit_cpu(case, device, config):
        return reason
    if case["n"] > MOST:
        return f"blocks of n = {case['n']}: the code is written out for each n, up to {MOST}"
    return None


VARIANT = Variant(
    op="block_diagonal_scan",
    name="numba.sequential",
    summary="one pass in native code, threads over groups of blocks and sequences",
    run=_scan_numba_call.forward,
    config=Config,
    axes={"block_d": (64, 320, 640, 1280, 2560)},
    reject=reject,
    rank=lambda case, device: 20,  # above every eager variant
)
