"""A surrogate model of a space: a Gaussian process on the logarithm of the seconds of the points tried.

Two points are alike as far as they share the variant, as far as they lie together on each axis alone (most axes hardly
matter, some matter whatever the others are), and as far as they lie together on all axes at once. A static model's
prediction, where there is one, is one more feature. The few constants are chosen anew for what was seen, by marginal
likelihood. Rasmussen and Williams, "Gaussian Processes for Machine Learning", sections 2.2 and 5.4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuning.search.space import Seen, Space

Array = NDArray[np.float64]

WORST = math.log(6.0)
"""Distance behind the best at which a point is clipped: how slow a bad point is says nothing about the good ones."""

RANKED = 0.1
"""How much slower, as a logarithm, a variant is expected to be than the one before it, up to the fourth: the points of
a space begin with the default's variant and go on as the variants' authors rank them."""

NOISE = 0.015
"""Standard deviation of a measured logarithm beyond what the model explains."""

LENGTHS = (0.25, 0.6, 1.5)
"""How far along an axis (1: all of it) points are alike."""

TOLD = 1.0
"""Variance that a static model's prediction explains, against that of all else; tried beside none at all."""

MIXES = ((0.3, 0.6, 0.1), (0.3, 0.2, 0.5), (0.6, 0.3, 0.1), (0.6, 0.1, 0.3))
"""Shares of the variance that are the variant's, of single axes, and of all axes at once."""


@dataclass(frozen=True)
class Belief:
    """mean, deviation: of log(seconds / best seen), for every point of the space."""

    mean: Array
    deviation: Array

    def improvement(self) -> Array:
        """Expected improvement on the best that was seen, as a share of it."""
        deviation = np.maximum(self.deviation, 1e-9)
        z = -self.mean / deviation
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        found: Array = -self.mean * below + deviation * density
        return found


class Geometry:
    """What the model needs to know of a space, once: distances along each axis between all points and some."""

    def __init__(self, space: Space) -> None:
        self.variant = np.array([list(space.members).index(p.variant) for p in space.points])
        fields = sorted({field for axes in space.axes.values() for field in axes})
        self.place = np.full((len(space), len(fields)), np.nan)
        self.category = np.zeros((len(space), len(fields)), dtype=bool)
        for variant, members in space.members.items():
            for axis, (field, _) in enumerate(space.axes.get(variant, {}).items()):
                column = fields.index(field)
                self.place[list(members), column] = [space.place(i)[axis] for i in members]
                self.category[list(members), column] = not space.ordered[variant, field]
        self.predicted = _standard(space.predicted_s) if any(space.predicted_s) else np.zeros(len(space))

    def likeness(self, rows: Sequence[int], columns: Sequence[int], length: float) -> tuple[Array, ...]:
        """(same variant, mean likeness over axes, likeness on all axes, product of predictions): [rows, columns]."""
        same = (self.variant[rows][:, None] == self.variant[columns][None, :]).astype(np.float64)
        single, product, axes = np.zeros_like(same), np.ones_like(same), np.zeros_like(same)
        for axis in range(self.place.shape[1]):
            away = np.abs(self.place[rows, axis][:, None] - self.place[columns, axis][None, :])
            away = np.where(self.category[rows, axis][:, None] & (away > 0), math.inf, away)
            both = ~np.isnan(away)
            alike = np.exp(-np.where(both, away, 0.0) / length)
            single += np.where(both, alike, 0.0)
            product *= alike
            axes += both
        single = same * np.where(axes > 0, single / np.maximum(axes, 1), 1.0)
        return same, single, same * product, np.outer(self.predicted[rows], self.predicted[columns])


def _standard(predicted: Sequence[float | None]) -> Array:
    """Logarithms of predicted seconds with mean 0 and deviation 1; 0 where there is no prediction."""
    logs = np.array([math.log(p) if p else math.nan for p in predicted])
    known = logs[~np.isnan(logs)]
    spread = float(known.std()) or 1.0
    return np.where(np.isnan(logs), 0.0, (logs - known.mean()) / spread)


_geometry = functools.lru_cache(maxsize=16)(Geometry)


def believe(space: Space, seen: Seen) -> Belief:
    """The posterior over all points given those seen, of which at least one was timed.

    A failed point counts as very slow, so that its neighbours are avoided.
    """
    tried, geometry = list(seen), _geometry(space)
    best = min(seconds for seconds in seen.values() if seconds is not None)
    y = np.array([WORST if s is None else min(WORST, math.log(s / best)) for s in seen.values()])
    prior = RANKED * np.minimum(geometry.variant, 3).astype(np.float64)
    y = y - prior[tried]
    centre = float(y.mean())
    everything = range(len(space))
    told = (0.0, TOLD) if geometry.predicted.any() else (0.0,)
    mixes = [(*mix, share) for mix in MIXES for share in told]
    chosen: tuple[float, Array, Array] | None = None
    for length in LENGTHS:
        inner = geometry.likeness(tried, tried, length)
        outer: tuple[Array, ...] | None = None
        for mix in mixes:
            score, scale, alpha, factor = _fit(_mixed(mix, inner), y - centre)
            if chosen is None or score > chosen[0]:
                outer = outer or geometry.likeness(everything, tried, length)
                across = _mixed(mix, outer)
                mean = centre + prior + across @ alpha
                half = np.linalg.solve(factor, across.T)
                own = sum(mix[:3]) + mix[3] * geometry.predicted**2
                left = np.maximum(own - (half * half).sum(axis=0), 0.0)
                chosen = score, mean, np.sqrt(scale * left)
    assert chosen is not None
    return Belief(chosen[1], chosen[2])


def _mixed(mix: Sequence[float], parts: Sequence[Array]) -> Array:
    """The parts, each at its share of the variance."""
    found = mix[0] * parts[0]
    for share, part in zip(mix[1:], parts[1:], strict=True):
        found = found + share * part
    return found


def _fit(k: Array, y: Array) -> tuple[float, float, Array, Array]:
    """(log marginal likelihood, variance, weights, Cholesky factor) of one choice of constants."""
    n = len(y)
    variance = max(float(y @ y) / n, 1e-4)
    chosen: tuple[float, float, Array, Array] | None = None
    for scale in (0.3 * variance, variance, 3 * variance):
        factor = np.asarray(np.linalg.cholesky(k + (NOISE**2 / scale + 1e-8) * np.eye(n)), dtype=np.float64)
        half = np.linalg.solve(factor, y)
        score = -0.5 * float(half @ half) / scale - float(np.log(np.diag(factor)).sum()) - 0.5 * n * math.log(scale)
        if chosen is None or score > chosen[0]:
            chosen = score, scale, np.linalg.solve(factor.T, half), factor
    assert chosen is not None
    return chosen
