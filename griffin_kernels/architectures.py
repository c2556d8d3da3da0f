"""GPU architectures by the name of Device.arch: what a block may use, which matrix products there are. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

KIB = 1024

SHARED_KIB: Mapping[str, int] = MappingProxyType(
    {
        "sm_75": 64,
        "sm_80": 163,
        "sm_86": 99,
        "sm_87": 163,
        "sm_89": 99,
        "sm_90": 227,
        "sm_100": 227,
        "sm_103": 227,
        "sm_120": 99,
        "sm_121": 99,
        "gfx90a": 64,
        "gfx942": 64,
        "gfx950": 160,
    }
)
"""Shared memory (LDS) that one block may use. NVIDIA: CUDA C++ Programming Guide, table of technical specifications per
compute capability, "maximum amount of shared memory per thread block". AMD: LDS per work-group, from the instruction
set guides of CDNA 2, 3 and 4."""

WITHOUT_PRODUCTS = frozenset({"sm_75"})
"""Where ``tl.dot`` becomes multiplications one by one, whatever the dtype: Triton uses NVIDIA's matrix units from sm_80
on. Operands are widened to float32 and kept in shared memory, twice what their 16-bit elements would need."""

SCRATCH = 3072
"""Bytes of shared memory, at most, that reductions and changes of layout add to what a kernel keeps there."""


def shared_bytes(arch: str) -> int | None:
    """Shared memory that one block may use; None for an architecture that is not known here."""
    return SHARED_KIB[arch] * KIB if arch in SHARED_KIB else None


def over_shared(needed: int, arch: str) -> str | None:
    """Why a kernel that needs so many bytes of shared memory cannot start, if so; it can where nothing is known."""
    limit = shared_bytes(arch)
    if limit is not None and needed > limit:
        return f"tiles need {needed} bytes of shared memory, {arch} has {limit} for a block"
    return None


def no_products(arch: str, dtype: str) -> str | None:
    """Why a kernel of matrix products of 16-bit data is no use on an architecture, if so."""
    if arch in WITHOUT_PRODUCTS and dtype in ("bfloat16", "float16"):
        return f"Triton has no matrix instructions for {arch}: the kernel would multiply {dtype} one by one in float32"
    return None
