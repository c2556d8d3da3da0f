"""Time split over programs in three phases, for long sequences of few complex channels.

    1. reduce: (P, S) of every chunk but the last, h_out = P h_in + S        reads x, a; writes two rows per chunk
    2. carry:  h_in of every chunk                                          reads and writes rows of chunks only
    3. scan:   h_t = a_t h_{t-1} + x_t from the right h_in                    reads x, a; writes h

linear_scan's triton.chunked with two channels for each number. A chunk with a gate beyond 1 in modulus is gone through
step by step for its carry. Phase 3 takes the chunks in the opposite order, so that what phase 1 read last, and the
cache still holds, is read first.

Bytes per number, in reals: 4 + 6, down to the ideal 6 (12 in bf16, 24 in fp32) where x and a fit in the last-level
cache; plus twelve accumulators per chunk and number. Packed sequences add a mark per step and end.
Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._triton import host
from griffin_kernels.ops.complex_scan import _complex_launches
from griffin_kernels.ops.linear_scan import triton_chunked


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: rows loaded ahead. block_d: numbers per program."""

    chunk: int = 128
    block_t: int = 16
    block_d: int = 64
    num_warps: int = 1


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if host.starves(case, device, below=0.0066) else 15


def traffic(case: Case, config: Any) -> int:
    """x and a read twice but for the last chunk, h written, P and S of chunks passed on; two reals a number."""
    return 2 * triton_chunked.traffic(case, config)


VARIANT = Variant(
    op="complex_scan",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (8, 16), "block_d": (64, 128), "num_warps": (1, 2)},
    reject=triton_chunked.reject,
    rank=rank,
    launches=_complex_launches.forward(triton_chunked.launches),
    traffic=traffic,
)
