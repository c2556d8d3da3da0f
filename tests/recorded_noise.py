"""Noise of a real machine for simulated races: what its samples were, in the order in which they were taken.

``data/noise.npz`` holds series of seconds over their median, from two cores of a shared virtual machine. quiet, busy:
all samples of all races of a tune run, each over its finalist's median, put back into the random order of their rounds;
during the second other programs ran. crowded: one call of 0.1 ms on both cores again and again, while a dozen processes
wanted them. ``python -m tests.recorded_noise quiet=JOURNAL busy=JOURNAL`` makes the first two anew.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tuning.record import journal
from tuning.record.journal_records import Race

FILE = Path(__file__).parent / "data" / "noise.npz"


def series(name: str) -> np.ndarray:
    """A recorded series by name."""
    with np.load(FILE) as file:
        return file[name].astype(np.float64)


class Machine:
    """A clock that kernels move forward by what they take, times what was recorded next. offset: where to begin."""

    def __init__(self, noise: np.ndarray, offset: int) -> None:
        self.now = 0.0
        self._noise = itertools.cycle(np.roll(noise, -offset).tolist())

    def clock(self) -> float:
        return self.now

    def sampler(self, seconds: float) -> Callable[[], float]:
        """Samples of a kernel that takes ``seconds`` when nothing disturbs it."""

        def sample() -> float:
            took = seconds * next(self._noise)
            self.now += took
            return took

        return sample


def of_journal(path: Path) -> np.ndarray:
    """The samples of all races of a journal over their finalists' medians, in the order in which they were taken."""
    found: list[float] = []
    for heat in (record for record in journal.read(path) if isinstance(record, Race)):
        order = random.Random(f"{heat.op}/{heat.case.key}")  # as race.run draws it
        medians = [np.median(heat.times(i)) for i in range(len(heat.keys))]
        for times, again in zip(heat.rounds_s, heat.again_s, strict=True):
            shares = [
                None if s is None else s / m for s, m in zip([*times, again], [*medians, medians[0]], strict=True)
            ]
            taken = order.sample([*range(len(times)), -1], len(times) + 1)
            found += [share for i in taken if (share := shares[i]) is not None]
    return np.array(found)


def main(*words: str) -> None:
    with np.load(FILE) as file:
        kept = dict(file)
    for name, _, path in (word.partition("=") for word in words):
        kept[name] = of_journal(Path(path)).astype(np.float32)
    for name, values in kept.items():
        print(f"{name}: {len(values)} samples, 1 10 90 99%: {np.quantile(values, (0.01, 0.1, 0.9, 0.99)).round(3)}")
    np.savez_compressed(FILE, **kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
