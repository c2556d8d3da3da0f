"""GPU architectures that kernels can be compiled for without the GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from griffin_kernels import architectures, errors
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


CHECKED = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950")
"""Targets that the recorded table holds. Tests compile for ``SAMPLE``, and for all where GRIFFIN_TEST_TARGETS=all."""


def target(name: str) -> Target:
    """``sm_90`` or ``gfx942`` as a Target; raises DeviceError for what is neither."""
    limit_bytes = architectures.shared_bytes(name)
    if match := re.fullmatch(r"sm_(\d+)", name):
        return Target(name, "cuda", int(match[1]), 32, limit_bytes)
    if re.fullmatch(r"gfx[0-9a-f]+", name):
        # GCN and CDNA (gfx9) run 64 threads in lockstep, RDNA 32.
        return Target(name, "hip", name, 64 if name.startswith("gfx9") else 32, limit_bytes)
    raise errors.DeviceError(f"unknown target {name!r}; known are {', '.join(architectures.SHARED_KIB)}")
