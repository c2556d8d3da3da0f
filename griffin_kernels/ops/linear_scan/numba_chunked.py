"""Time cut into chunks that run on different threads, in native CPU code, for few channels and few sequences.

Over one chunk the state goes from c to P c + L. Three phases:

    reduce   every chunk but the last: P = product of a, L = the state it reaches from zero
    carries  the state that enters each chunk, chunk after chunk
    scan     numba_sequential.py's pass over every chunk, from its own carry

x and a are read twice, so this pays only where threads would be idle in one pass. That pieces of a first-order
recurrence compose like this is in Blelloch, "Prefix Sums and Their Applications", CMU-CS-90-190, section 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.linear_scan import _scan_numba_call, numba_sequential


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item; whole rows are read fastest. chunk: time steps of one work item.

    ahead: ask for the next row early.
    """

    block_d: int = 4096
    ahead: bool = True
    chunk: int = 256


def rank(case: Case, device: Device) -> int:
    """Before the single pass where that would leave three quarters of the cores idle for long."""
    busy = case["N"] * -(-case["D"] // numba_sequential.Config.block_d)
    return 30 if 4 * busy <= device.units and case["T"] >= 4 * Config.chunk else 15


def traffic(case: Case, config: Config) -> int:
    """Bytes moved: x and a twice, h once."""
    streams = 3 if case["T"] <= config.chunk else 5
    return streams * case["B"] * case["T"] * case["D"] * case.bytes_per_element()


VARIANT = Variant(
    op="linear_scan",
    name="numba.chunked",
    summary="three phases in native code, threads over time too",
    run=_scan_numba_call.gates,
    config=Config,
    axes={"block_d": (640, 4096), "ahead": (False, True), "chunk": (16, 64, 256, 1024)},
    reject=unfit_cpu,
    rank=rank,
    traffic=traffic,
)
