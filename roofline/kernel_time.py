"""The arithmetic of one kernel's predicted time: its limits, its constants, how they combine. Needs no PyTorch.

    t = fixed + (sum over limits of t_i^SHARPNESS)^(1 / SHARPNESS)

A smooth maximum, since limits that are close to each other overlap badly. ``tuning.predict.time_model`` finds the
limits of a compiled kernel from its machine code; ``roofline.validation`` those of a published one from what it moves.
Both state them by the functions here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from griffin_kernels.datasheet import Datasheet
from roofline import reached

SHARPNESS = 3.0
"""Exponent of the smooth maximum: two equal limits give 1.26 of one. Fitted to the published set: 2 and 8 are worse."""

L2_BYTES_PER_CLOCK = 64.0
"""From the second-level cache into one SM or CU, at most: a round figure that ``cache_reach`` is a share of. NVIDIA's
A100 white paper states 5,120 bytes per clock for 108 SMs, AMD's CDNA 3 white paper 2,048 for the 38 CUs of a die."""

KEPT_SHARE = 0.5
"""Data that is used again comes from the cache while it fills no more than this share of it, from memory when it is
larger than the whole, and in part between the two. RRZE's gpu-l2-cache loses bandwidth from 18 to 28 of 40 MB on an
A100, from 25 to 40 of 50 MB on an H100."""

MATRIX_SHARE: Mapping[str, float] = {"sm_80": 0.9}
"""What Triton's products reach of a library's, by architecture: 0.80 to 0.95 of cuBLAS on an A100, by the table of
Triton's tutorial. 0.7 elsewhere, which is a guess."""


class Constants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The constants of the model, which ``griffin tune calibrate`` fits. The defaults are those of an NVIDIA GPU about
    which nothing is published; ``constants_of`` gives those of a SKU.

    launch_s: from one small kernel's start to the next's on a stream, seconds; in a graph it is less, but larger
    kernels also start and drain. latency_s: of a load from device memory, seconds. dram_reach: share of the memory
    peak. cache_reach: share of L2_BYTES_PER_CLOCK. matrix_share: of what a library's products reach. issue_reach: share
    of the instructions that can start. dependent_cycles: from one instruction of a program to the next, the mean of
    those that need the result and those that do not.
    """

    launch_s: float = 2.24e-6
    latency_s: float = 0.32e-6
    dram_reach: float = reached.ACHIEVED_DRAM
    cache_reach: float = 0.45
    matrix_share: float = 0.7
    issue_reach: float = 0.75
    dependent_cycles: float = 3.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, expected a positive number")


ASSUMED = Constants()

SOURCES: Mapping[str, str] = {
    "launch_s": "published: RRZE-HPC gpu-benches, gpu-small-kernels on a stream (roofline.reached.stream_kernel_s)",
    "latency_s": "published: RRZE-HPC gpu-benches, gpu-latency (roofline.reached.latency_s)",
    "dram_reach": "published: datasheets, achieved_dram_gb_per_s (roofline.reached.dram)",
    "cache_reach": "published: RRZE-HPC gpu-benches, gpu-l2-cache (roofline.reached.l2_bytes_per_clock)",
    "matrix_share": "published on sm_80: table of Triton's matrix product tutorial; elsewhere a guess",
    "issue_reach": "a guess: nothing published depends on it, `griffin tune calibrate` fits it",
    "dependent_cycles": "published: 4 for dependent and 2 for independent float32 sums on an A100 (arXiv 2208.11174)",
    "SHARPNESS": "fitted: to the published set",
    "KEPT_SHARE": "published: RRZE-HPC gpu-benches, gpu-l2-cache",
    "L2_BYTES_PER_CLOCK": "published: white papers of A100 and CDNA 3; a unit, cache_reach is what counts",
}
"""Where each constant comes from: published, fitted, or a guess that says so."""


def constants_of(sheet: Datasheet) -> Constants:
    """The constants of a SKU: its own published figures, else what is assumed of its architecture."""
    kernel, latency, cache = reached.stream_kernel_s(sheet), reached.latency_s(sheet), reached.l2_bytes_per_clock(sheet)
    known = {
        "launch_s": kernel.value if kernel else None,
        "latency_s": latency.value if latency else None,
        "dram_reach": reached.dram(sheet).value,
        "cache_reach": cache.value / L2_BYTES_PER_CLOCK if cache else None,
        "matrix_share": MATRIX_SHARE.get(sheet.arch),
    }
    return msgspec.structs.replace(ASSUMED, **{name: value for name, value in known.items() if value is not None})


class Traffic(NamedTuple):
    """Bytes of a kernel that device memory moves, and those that only the cache does."""

    dram: float
    cache: float


def traffic(
    moved: float,
    cache_bytes: int,
    *,
    again: float = 0.0,
    together: float = 0.0,
    spilled: float = 0.0,
    spill_space: float = 0.0,
) -> Traffic:
    """Where a kernel's bytes go.

    moved: each tensor once. cache_bytes: the last-level cache. again: what programs read once more of their own rows;
    together: bytes of the rows that are worked on at once. spilled: loads and stores of spilled registers, bytes;
    spill_space: bytes that all threads at once spill to.
    """
    dram, cache = moved, 0.0
    for amount, space in ((again, together), (spilled, spill_space)):
        lost = _lost(space, cache_bytes)
        dram, cache = dram + lost * amount, cache + (1 - lost) * amount
    return Traffic(dram, cache)


def _lost(space: float, cache_bytes: int) -> float:
    """Share of data in so many bytes that the cache no longer holds when it is used again."""
    if not cache_bytes:
        return 1.0
    return min(1.0, max(0.0, (space / cache_bytes - KEPT_SHARE) / (1 - KEPT_SHARE)))


def iteration_s(waiting_s: float, working_s: float, ahead: int = 0) -> float:
    """One iteration of a program's main loop: it waits for its loads, then for its instructions.

    ahead: iterations by which asynchronous copies run before their use; 0 for loads that are waited for.
    """
    return max(waiting_s / ahead, working_s) if ahead else waiting_s + working_s


def smooth_maximum(limits_s: Mapping[str, float]) -> float:
    """The limits together, without the fixed cost; 0 without any."""
    longest = max(limits_s.values(), default=0.0)
    if longest == 0.0:
        return 0.0
    power = sum(math.pow(seconds / longest, SHARPNESS) for seconds in limits_s.values())
    return longest * math.pow(power, 1 / SHARPNESS)
