"""Time split over threads too, in native CPU code: for long sequences of few complex channels.

    reduce   (product of a, what a zero state becomes) of every chunk but the last of a sequence, all at once
    carries  the state that enters each chunk, chunk after chunk
    scan     numba.sequential's pass over every chunk, from its own carry

linear_scan's numba.chunked with two channels for each number. x and a are read twice, so this pays only where threads
would be idle in one pass. A chunk with a gate beyond 1 in modulus is gone through step by step for its carry.
Source: Blelloch, "Prefix Sums and Their Applications", CMU-CS-90-190, section 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.complex_scan import _pair_calls, numba_sequential
from griffin_kernels.ops.linear_scan import _scan_numba_call, numba_chunked


@dataclass(frozen=True)
class Config:
    """block_d: complex channels of one work item; whole rows are read fastest. chunk: time steps of one work item.

    ahead: ask for the next row early.
    """

    block_d: int = 2048
    ahead: bool = True
    chunk: int = 256


def rank(case: Case, device: Device) -> int:
    """Before the single pass where that would leave three quarters of the cores idle for long."""
    busy = case["N"] * -(-case["D"] // numba_sequential.Config.block_d)
    return 30 if 4 * busy <= device.units and case["T"] >= 4 * Config.chunk else 15


def traffic(case: Case, config: Any) -> int:
    """Bytes moved: x and a twice, h once, two reals a number."""
    return 2 * numba_chunked.traffic(case, config)


VARIANT = Variant(
    op="complex_scan",
    name="numba.chunked",
    summary="three phases in native code, threads over time too",
    run=_pair_calls.on_pairs(_scan_numba_call.forward),
    config=Config,
    axes={"block_d": (320, 2048), "ahead": (False, True), "chunk": (16, 64, 256, 1024)},
    reject=unfit_cpu,
    rank=rank,
    traffic=traffic,
)
