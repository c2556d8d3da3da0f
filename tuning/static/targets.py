"""GPU architectures that kernels can be compiled for without the GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from griffin_kernels import errors
from griffin_kernels.device import Device


@dataclass(frozen=True)
class Target:
    """An architecture as Triton names it.

    backend: ``cuda`` or ``hip``. arch: compute capability (90) or AMD's name (gfx942). warp_size: threads.
    shared_limit_bytes: shared memory (LDS) that one block may use; None where it is not known here.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_limit_bytes: int | None = None

    @property
    def device(self) -> Device:
        """A device of this architecture of which nothing else is known, for asking variants what they refuse."""
        return Device(self.backend, self.name, self.name, 1, 0, 0, warp_size=self.warp_size)


_KIB = 1024
# NVIDIA: CUDA C++ programming guide, table of technical specifications per compute capability, "maximum amount of
# shared memory per thread block". AMD: LDS per work-group, from the instruction set guides of CDNA 2, 3 and 4.
_SHARED_KIB = {
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

CHECKED = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
"""Targets that the tests compile for."""


def target(name: str) -> Target:
    """``sm_90`` or ``gfx942`` as a Target; raises DeviceError for what is neither."""
    limit = _SHARED_KIB.get(name)
    limit_bytes = None if limit is None else limit * _KIB
    if match := re.fullmatch(r"sm_(\d+)", name):
        return Target(name, "cuda", int(match[1]), 32, limit_bytes)
    if re.fullmatch(r"gfx[0-9a-f]+", name):
        # GCN and CDNA (gfx9) run 64 threads in lockstep, RDNA 32.
        return Target(name, "hip", name, 64 if name.startswith("gfx9") else 32, limit_bytes)
    raise errors.DeviceError(f"unknown target {name!r}; known are {', '.join(_SHARED_KIB)}")
