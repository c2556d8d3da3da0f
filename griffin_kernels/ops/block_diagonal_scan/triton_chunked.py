"""Time split over programs in three phases, for long sequences of few blocks.

    1. reduce: (P, S) of every chunk but the last, h_out = P h_in + S       reads x, a; writes a matrix and a vector
    2. carry:  h_out of every chunk                                        a block-diagonal scan over chunks
    3. scan:   h_t = A_t h_{t-1} + x_t from the right h_in                   reads x, a; writes h

Phase 1 multiplies matrices: n times the multiply-adds of the scan, in float32 on the vector units. That is nothing for
n = 2 and 4; for n = 16, where one matrix has 256 elements and every step 4096 products, arithmetic binds phase 1 and
splitting pays only where there are very few blocks. Phase 3 takes the chunks in the opposite order, so that what phase
1 read last, and the cache still holds, is read first.

Bytes per element of h, in data elements: (n + 1) + (n + 2), down to n + 2 where x and a fit in the last-level cache;
plus 2 n + 4 accumulators per chunk and channel. Packed sequences add a mark per step and end.
Source: as linear_scan/triton.chunked, with matrices in place of factors: Blelloch, "Prefix sums and their applications"
(1990), section 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops.block_diagonal_scan import _block_launches, triton_sequential
from griffin_kernels.ops.linear_scan import _triton_scan_chunks
from griffin_kernels.ops.linear_scan._scan_launches import padded
from griffin_kernels.ops.linear_scan.triton_chunked import launches, traffic


@dataclass(frozen=True)
class Config:
    """chunk: steps per program. block_t: steps loaded ahead. block_a: elements of a per step and program of phase 3."""

    chunk: int = 64
    block_t: int = 16
    block_a: int = 256
    num_warps: int = 1


def reject(case: Case, device: Device, config: Config) -> str | None:
    if config.chunk % config.block_t:
        return f"chunk={config.chunk} is not a multiple of block_t={config.block_t}"
    if reason := _block_launches.unfit(case, device, config.block_a, config.num_warps):
        return reason
    if padded(case["n"]) ** 2 > _triton_scan_chunks.BLOCK_A:
        return f"blocks of n = {case['n']}: products of matrices are kept in registers up to n = 16"
    return None


def rank(case: Case, device: Device) -> int:
    """The default where one pass over time cannot keep the memory busy."""
    return 40 if _block_launches.splits(case, device, triton_sequential.Config(), 0.4) else 15


VARIANT = Variant(
    op="block_diagonal_scan",
    name="triton.chunked",
    summary="time split over programs: reduce chunks, carry, scan",
    config=Config,
    axes={"chunk": (32, 64, 128, 256), "block_t": (8, 16), "block_a": (256, 512), "num_warps": (1, 2)},
    reject=reject,
    rank=rank,
    launches=launches,
    traffic=traffic,
)
