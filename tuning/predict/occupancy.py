"""Occupancy: how many blocks of a kernel one SM or CU holds at once, and which resource limits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from griffin_kernels.architectures import KIB, SHARED_KIB


@dataclass(frozen=True)
class ResidencyLimits:
    """What one SM or CU has for the blocks that it holds.

    warps: warps (AMD: waves). blocks: thread blocks. registers: 32-bit registers, of all threads together.
    shared_bytes: shared memory (LDS), and block_shared_bytes of it for one block at most. reserved_bytes: shared memory
    that each block takes besides its own. issue: instructions of a warp that start per clock, all schedulers together.
    warp_size: threads.
    """

    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int
    issue: float
    warp_size: int = 32


def _nvidia(arch: str, warps: int, blocks: int) -> ResidencyLimits:
    # a unit has what one block may use and, from sm_80 on, 1 KiB besides, which every block takes for the system
    block, reserved = SHARED_KIB[arch] * KIB, 0 if arch == "sm_75" else KIB
    return ResidencyLimits(warps, blocks, 65536, block + reserved, block, reserved, issue=4.0)


def _cdna(arch: str) -> ResidencyLimits:
    shared = SHARED_KIB[arch] * KIB
    # 4 SIMDs of 512 registers x 64 lanes; each starts a vector instruction of 64 threads every 4 clocks, and beside it
    # one of each other kind, of other waves (ROCm Compute Profiler's documentation, pipeline descriptions, scheduler)
    return ResidencyLimits(32, 32, 4 * 512 * 64, shared, shared, 0, issue=1.0, warp_size=64)


LIMITS: Mapping[str, ResidencyLimits] = {
    "sm_75": _nvidia("sm_75", 32, 16),
    "sm_80": _nvidia("sm_80", 64, 32),
    "sm_86": _nvidia("sm_86", 48, 16),
    "sm_87": _nvidia("sm_87", 48, 16),
    "sm_89": _nvidia("sm_89", 48, 24),
    "sm_90": _nvidia("sm_90", 64, 32),
    "sm_100": _nvidia("sm_100", 64, 32),
    "sm_103": _nvidia("sm_103", 64, 32),
    "sm_120": _nvidia("sm_120", 48, 24),
    "sm_121": _nvidia("sm_121", 48, 24),
    "gfx90a": _cdna("gfx90a"),
    "gfx942": _cdna("gfx942"),
    "gfx950": _cdna("gfx950"),
}
"""NVIDIA: CUDA C++ Programming Guide 13, "technical specifications per compute capability"; 1 KiB of shared memory is
reserved per block from sm_80 on; four schedulers, an instruction each per clock. AMD: instruction set guides of CDNA 2,
3 and 4, and the LLVM AMDGPU guide (8 waves per SIMD, registers in steps of 8)."""

REGISTER_STEP = 8
"""Registers of a thread are given out in steps of this (NVIDIA: 256 per warp of 32; AMD: 8)."""

SCHEDULERS = 4
"""Parts of a unit, on all of these; each owns a quarter of its registers."""

BLOCK_THREADS = 1024
"""Most threads of a block, on all of these."""


@dataclass(frozen=True)
class Occupancy:
    """blocks: resident at once on a unit, 0 where one does not fit. limit: what stops more. share: of its warps."""

    blocks: int
    limit: str
    share: float


def occupancy(arch: str, registers: int, shared_bytes: int, num_warps: int) -> Occupancy:
    """Blocks of ``num_warps`` warps with so many registers per thread and bytes of shared memory that fit a unit.

    arch: one of LIMITS.
    """
    have = LIMITS[arch]
    taken = REGISTER_STEP * -(-max(registers, 1) // REGISTER_STEP) * have.warp_size
    # registers belong to schedulers, and warps go round
    warps_by_registers = SCHEDULERS * (have.registers // SCHEDULERS // taken)
    counts = {"registers": warps_by_registers // num_warps, "warps": have.warps // num_warps, "blocks": have.blocks}
    if shared_bytes:
        counts["shared memory"] = have.shared_bytes // (shared_bytes + have.reserved_bytes)
    if shared_bytes > have.block_shared_bytes:
        counts["shared memory"] = 0
    if num_warps * have.warp_size > BLOCK_THREADS:
        counts["threads of a block"] = 0
    limit = min(counts, key=lambda name: counts[name])
    return Occupancy(counts[limit], limit, counts[limit] * num_warps / have.warps)
