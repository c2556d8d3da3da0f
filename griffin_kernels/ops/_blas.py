"""Finds the BLAS that torch itself multiplies with, for native code that calls it from several threads at once."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Blas:
    """Addresses of C functions.

    sgemm: Fortran's SGEMM with 32-bit integers. set_threads: MKL's int (int), which sets how many threads the calling
    one's products run on (0: as for all threads) and returns what it was; 0 where the library has no such function.
    """

    sgemm: int
    set_threads: int


@functools.cache
def found() -> Blas | None:
    """Torch's BLAS, or None where its library keeps it to itself."""

    def address(name: str) -> int:
        function = getattr(library, name, None)
        return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None
    sgemm = address("sgemm_")
    return Blas(sgemm, address("MKL_Set_Num_Threads_Local")) if sgemm else None


def problem() -> str | None:
    """Why native code cannot call torch's products, if it cannot."""
    if found():
        return None
    return "this build of PyTorch does not let native code call its BLAS (no sgemm_ in its library)"
