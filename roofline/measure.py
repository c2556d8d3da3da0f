"""Measures the ceilings of the device at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from griffin_kernels.device import Device

COPY_BYTES_LEAST = 256 * 2**20
"""Size of a buffer; it must be several times any last-level cache."""


@dataclass(frozen=True)
class MeasuredCeiling:
    """A ceiling by name, its samples in ``unit``."""

    name: str
    unit: str
    samples: tuple[float, ...]


def dram(device: Device, rounds: int = 15) -> tuple[MeasuredCeiling, ...]:
    """DRAM bandwidth as bytes per second of ``dst.copy_(src)`` and of ``torch.add(a, b, out=c)``.

    Buffers are at least four times the last-level cache and touched before timing, so page faults are not in it. Bytes
    are those that the program names: a CPU may read a line before it overwrites it, which is not counted.
    """
    size = max(COPY_BYTES_LEAST, 4 * device.last_level_cache_bytes)
    source, other = (torch.ones(size // 4, dtype=torch.float32, device=device.torch_device) for _ in range(2))
    target = torch.zeros_like(source)
    streams: dict[str, tuple[int, Callable[[], object]]] = {
        "dram_copy": (2, lambda: target.copy_(source)),
        "dram_add": (3, lambda: torch.add(source, other, out=target)),
    }
    samples: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds + 2):
        for name, (count, work) in streams.items():
            samples[name].append(count * source.numel() * 4 / seconds_of(work, device))
    return tuple(MeasuredCeiling(name, "bytes_per_s", tuple(values[2:])) for name, values in samples.items())


def seconds_of(work: Callable[[], object], device: Device) -> float:
    """Seconds that one call takes on a device: wall clock on a CPU, between events on a GPU."""
    if device.kind == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
