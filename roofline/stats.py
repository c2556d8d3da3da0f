"""Statistics over timing samples: medians and bootstrap intervals. Seeded, so equal samples give equal intervals.

Timing samples are skewed and have outliers, so nothing here assumes a normal distribution or drops a sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of bootstrap replicates that an interval covers."""

RESAMPLES = 2000
"""Bootstrap replicates per interval: enough for two stable digits of the ends."""

Samples = Sequence[float] | NDArray[np.float64]


def _checked(samples: Samples, name: str = "samples") -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, it has shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return values


def median(samples: Samples) -> float:
    """The middle sample, or the mean of the middle two."""
    return float(np.median(_checked(samples)))


def bootstrap_interval(
    samples: Samples, statistic: Callable[..., Any] = np.median, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of ``statistic`` over resamples with replacement, by percentiles.

    statistic: reduces along ``axis``, as ``np.median`` and ``np.mean`` do. One sample gives an interval of no width:
    it says nothing about the spread, and the caller knows how many samples there were.
    """
    values = _checked(samples)
    picks = np.random.default_rng(seed).integers(0, values.size, size=(RESAMPLES, values.size))
    replicates = statistic(values[picks], axis=1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def paired_ratio_interval(a: Samples, b: Samples, seed: int = 0) -> tuple[float, float]:
    """(low, high) of the median of a_i / b_i, where a_i and b_i were measured in the same round.

    Pairs share what drifts (clocks, temperature, neighbours), so their ratio is steadier than a ratio of medians.
    """
    top, bottom = _checked(a, "a"), _checked(b, "b")
    if top.size != bottom.size:
        raise ValueError(f"pairs need equally many samples, a has {top.size} and b has {bottom.size}")
    if (bottom <= 0).any():
        raise ValueError("b holds a value that is not positive")
    return bootstrap_interval(top / bottom, seed=seed)


def noise_floor(a: Samples, b: Samples) -> tuple[float, float, float]:
    """(low, high, floor) of the ratio of two samplings of the same thing: floor is the larger distance from 1."""
    low, high = paired_ratio_interval(a, b)
    return low, high, max(abs(1 - low), abs(high - 1))


def signed_rank_interval(samples: Sequence[float] | NDArray[np.float64], tail: float) -> tuple[float, float, float]:
    """(low, middle, high) of the centre of symmetry, by Wilcoxon's signed-rank test.

    Each end is on the wrong side with a probability of at most ``tail``, exactly so for any symmetric distribution and
    any number of samples; the middle is the Hodges-Lehmann estimate (Hollander, Wolfe, Chicken, Nonparametric
    Statistical Methods, section 3.3). The ends are infinite where there are too few samples for ``tail``.
    """
    values = _checked(samples)
    rows, columns = np.triu_indices(values.size)
    walsh = np.sort((values[rows] + values[columns]) / 2)
    # the largest rank that the sum of positive ranks is below with a probability of at most ``tail``
    rank = int(np.searchsorted(_signed_rank_below(values.size), tail, side="right"))
    low, high = (walsh[rank - 1], walsh[-rank]) if rank else (-math.inf, math.inf)
    return float(low), float(np.median(walsh)), float(high)


@functools.lru_cache(maxsize=64)
def _signed_rank_below(count: int) -> NDArray[np.float64]:
    """Probability that the sum of positive ranks is at most 0, 1, 2 ..., each sign as likely as the other."""
    chance = np.zeros(count * (count + 1) // 2 + 1)
    chance[0] = 1.0
    for rank in range(1, count + 1):
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    below: NDArray[np.float64] = np.cumsum(chance)
    return below
