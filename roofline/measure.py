"""Measures the ceilings of the device at hand: memory, caches, arithmetic, launching.

All ceilings are sampled in turn, round after round, so each one's samples are spread over the whole measurement.
Buffers are touched, and everything is run twice, before anything is timed.

A ceiling is what the device reaches when it is left alone, so samples in which a thread of ours had to wait for a core
are dropped where the system tells (Linux does), and of the others a high quantile is taken.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from msgspec import structs

from griffin_kernels import errors
from griffin_kernels.device import Device
from roofline import probes
from roofline.ceilings import DISTURBED as DISTURBED
from roofline.ceilings import Ceiling, Unit
from roofline.probes import Probe
from roofline.stats import bootstrap_interval

# On two cores of a shared host samples have two modes, 20 to 40 % apart, that last for seconds: neighbours' turbo and
# memory traffic, which no counter here shows. In five windows of 15 s the best exp rate was 2.37 to 2.39 G/s, the 0.9
# quantile 1.65 to 2.38, the median 1.6 to 1.8; the best of torch.mm 146 to 191 GFLOP/s, the median 127 to 161. The
# second best of a hundred repeats like the best and does not hang on one sample. Samples that waited for a core are
# dropped beforehand. The median of the rest is kept too, as the usual rate: Ceiling.usual.
QUANTILE = 0.99
"""Of the rates (of the times 1 less this): what the device reaches while its neighbours are quiet."""

SECONDS = 20.0
"""Time spent on all ceilings, without preparation."""

DRAM_SECONDS = 1.5
"""Time spent where only DRAM is measured."""

VISIT_S = 0.012
MOST_SAMPLES = 8
"""A probe takes samples for this long in a round, or so many."""

MOST_POOLED = 600
"""Samples of a ceiling that are kept, the latest."""

LONGEST = 1.5
"""Where samples are disturbed, sampling goes on for so many times as long, then ends; every probe has one sample."""

LEAST_UNDISTURBED = 5
"""With fewer undisturbed samples than this a ceiling is taken from all of them, and says so."""

WAITED_SHARE = 0.02
"""Share of a sample that our threads may wait for a core in all, and it still counts as undisturbed."""

Progress = Callable[[str, float], None]
"""Told what is being measured and which share of the time is over."""

Value = TypeVar("Value")

Sample = tuple[float, bool]
"""A value in the probe's unit, and whether nothing disturbed it."""


def measure(
    device: Device, progress: Progress | None = None, seconds: float = SECONDS, made: Iterable[Probe] | None = None
) -> list[Ceiling]:
    """Every ceiling of a device, or of the probes ``made``, by sampling for about ``seconds`` after preparation."""
    sampler = Sampler(device, made, progress)
    sampler.sample(seconds, LONGEST)
    return sampler.ceilings()


def dram(device: Device, seconds: float = DRAM_SECONDS) -> list[Ceiling]:
    """The DRAM ceilings alone: copy, triad and read."""
    return measure(device, seconds=seconds, made=probes.dram(device))


def roofs(device: Device, seconds: float, progress: Progress | None = None) -> list[Ceiling]:
    """The ceilings that kernels are judged by: DRAM, cache, matrix products, vector arithmetic, special functions."""
    return measure(device, progress, seconds, probes.roofs(device))


class Sampler:
    """Samples probes for as long as it is told to, as often as it is told to.

    device: where. made: the probes, all that the device can have by default. progress: told what is sampled.
    Raises DeviceError where there is no room for the probes' buffers.
    """

    def __init__(self, device: Device, made: Iterable[Probe] | None = None, progress: Progress | None = None) -> None:
        self.device = device
        self.tell: Progress = progress or (lambda what, share: None)
        self.tell("preparing", 0.0)
        with torch.inference_mode(), probes.current(device):
            try:
                self.tried = list(probes.everything(device) if made is None else made)
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                raise errors.DeviceError(f"{device.name} has too little free memory for the buffers: {error}") from None
            for probe in self.tried:
                probe.work()
                probe.work()
        self.found: list[list[Sample]] = [[] for _ in self.tried]

    def sample(self, seconds: float, longest: float = 1.0) -> None:
        """Take samples in rounds until ``seconds`` are over.

        Probes that are short of undisturbed samples then go on alone, up to ``longest`` times ``seconds`` in all.
        """
        wanting = list(range(len(self.tried)))
        began = time.perf_counter()
        with torch.inference_mode():
            while True:
                for i in wanting:
                    share = (time.perf_counter() - began) / seconds if seconds > 0 else math.inf
                    if share >= longest and all(self.found):
                        return
                    self.tell(self.tried[i].name, min(share, 1.0))
                    self.found[i] += _visit(self.tried[i], self.device)
                if time.perf_counter() - began >= seconds:
                    wanting = [i for i in wanting if sum(calm for _, calm in self.found[i]) < LEAST_UNDISTURBED]
                    if not wanting:
                        return

    def visit(self) -> dict[str, list[float]]:
        """Visit every probe once more: undisturbed samples by name, of several probes of one name the fastest's."""
        best: dict[str, list[float]] = {}
        with torch.inference_mode():
            for probe in self.tried:
                values = [value for value, calm in _visit(probe, self.device) if calm]
                if values and (probe.name not in best or max(values) > max(best[probe.name])):
                    best[probe.name] = values
        return best

    def ceilings(self) -> list[Ceiling]:
        """What all samples so far come to; of several probes of one name the best."""
        best: dict[str, Ceiling] = {}
        for probe, samples in zip(self.tried, self.found, strict=True):
            ceiling = estimate(probe, samples)
            if probe.name not in best or ceiling.value > best[probe.name].value:
                best[probe.name] = ceiling
        return list(best.values())


def _visit(probe: Probe, device: Device) -> list[Sample]:
    samples: list[Sample] = []
    until = time.perf_counter() + VISIT_S
    while len(samples) < MOST_SAMPLES and (not samples or time.perf_counter() < until):
        samples.append(watched(functools.partial(probe.sample, device), device))
    return samples


def watched(work: Callable[[], Value], device: Device) -> tuple[Value, bool]:
    """The result of ``work``, and whether our threads had their cores meanwhile."""
    waited, began = waited_s(device), time.perf_counter()
    value = work()
    return value, waited_s(device) - waited <= WAITED_SHARE * (time.perf_counter() - began)


def waited_s(device: Device) -> float:
    """Seconds that threads of this process were ready to run and had no core, so far; 0 where nobody counts them.

    Source: the second field of ``/proc/<pid>/task/<tid>/schedstat``, docs.kernel.org/scheduler/sched-stats.html.
    """
    if device.kind != "cpu":
        return 0.0
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # a thread may end, and a kernel may not count
            nanoseconds += int(file.read_text(encoding="utf-8").split()[1])
    return nanoseconds / 1e9


def estimate(probe: Probe, samples: Sequence[Sample]) -> Ceiling:
    """A ceiling from its samples: the quantile of the undisturbed ones on the fast side, with its 95 % interval."""
    values = [value for value, calm in samples if calm]
    source = probe.source
    if len(values) < LEAST_UNDISTURBED:
        source += DISTURBED if len(values) < min(len(samples), LEAST_UNDISTURBED) else ""
        values = [value for value, _ in samples]
    return _estimated(probe.name, probe.unit, source, values)


def pooled(ceiling: Ceiling, samples: Sequence[float]) -> Ceiling:
    """A measured ceiling with later samples; it is raised where all together reach beyond its interval, never lowered.

    samples: undisturbed, in the ceiling's unit, of a rate.
    """
    values = [*ceiling.samples, *(float(f"{v:.4g}") for v in samples)][-MOST_POOLED:]
    if float(np.quantile(values, QUANTILE)) <= ceiling.high:
        return structs.replace(ceiling, samples=values)
    return _estimated(ceiling.name, ceiling.unit, ceiling.source, values)


def _estimated(name: str, unit: Unit, source: str, values: Sequence[float]) -> Ceiling:
    rank = 1 - QUANTILE if unit == "s" else QUANTILE
    value = float(np.quantile(values, rank))
    low, high = bootstrap_interval(values, functools.partial(np.quantile, q=rank))
    return Ceiling(
        name=name, unit=unit, value=value, low=min(low, value), high=max(high, value),
        origin="measured", source=source, samples=[float(f"{v:.4g}") for v in values],
    )  # fmt: skip
