"""Compares calls in interleaved rounds: whatever else the machine does, it does to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """Median and fastest time of one call, and the ratio of medians to the yardstick.

    low, high: 95 % bootstrap interval of the ratio, over rounds.
    """

    name: str
    median_ms: float
    fastest_ms: float
    ratio: float
    low: float
    high: float


def race(calls: Mapping[str, Callable[[], object]], rounds: int = 30, warmup: int = 3) -> dict[str, Row]:
    """Time every call once per round, in an order that changes; ratios are to the first call."""
    names = list(calls)
    seconds = np.empty((rounds, len(names)))
    for index in range(-warmup, rounds):
        for position in range(len(names)):
            column = (position + index) % len(names)
            start = time.perf_counter()
            calls[names[column]]()
            took = time.perf_counter() - start
            if index >= 0:
                seconds[index, column] = took
    medians = np.median(seconds, axis=0)
    picked = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
    resampled = np.median(seconds[picked], axis=1)  # [resamples, calls]
    low, high = np.quantile(resampled / resampled[:, :1], (0.025, 0.975), axis=0)
    fastest, ratios = seconds.min(axis=0), medians / medians[0]
    return {
        name: Row(name, 1e3 * medians[i], 1e3 * fastest[i], ratios[i], low[i], high[i]) for i, name in enumerate(names)
    }


def show(title: str, rows: Mapping[str, Row]) -> None:
    """Print a table; pytest shows it with ``-s``."""
    width = max(len(name) for name in rows)
    print(f"\n{title}")
    for row in rows.values():
        times = f"{row.median_ms:9.3f} ms (fastest {row.fastest_ms:.3f})"
        print(f"  {row.name:{width}}  {times:32}  {row.ratio:6.2f}  [{row.low:.2f}, {row.high:.2f}]")
