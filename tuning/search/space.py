"""The search space of one op and case, and a surrogate model of it.

A point is one configuration of one variant. Points of a variant lie on a grid of its axes, with holes where a
configuration cannot run; steps go along one axis at a time, over the holes.

The model is a Gaussian process on the logarithm of the seconds of the points tried. Two points are alike as far as they
share the variant, as far as they lie together on each axis alone (most axes hardly matter, some matter whatever the
others are), and as far as they lie together on all axes at once. A static model's prediction, where there is one, is
one more feature. The few constants are chosen anew for what was seen, by marginal likelihood. Rasmussen and Williams,
"Gaussian Processes for Machine Learning", sections 2.2 and 5.4.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = tuple[tuple[str, Any], ...]
"""A configuration as (field, value) in field order."""

Seen = Mapping[int, float | None]
"""Point of a space -> its seconds, in the order tried; None where it failed."""


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
class Point:
    """One configuration of one variant."""

    variant: str
    config: Values


@dataclass(frozen=True, eq=False)  # compared by identity, so that what is worked out of a space can be kept
class Space:
    """Everything that competes for one op and case, baselines left out.

    seeds: points to try first, in order: default, incumbent, winners of
    the nearest device, what a static model likes best. predicted_s: seconds by a static model, one for each point, or
    nothing. key: ``op/case``, the seed of random choices, so that a resumed search continues as it would have.
    """

    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    predicted_s: tuple[float | None, ...] = ()
    key: str = ""

    def __len__(self) -> int:
        return len(self.points)

    @functools.cached_property
    def index(self) -> Mapping[Point, int]:
        """Point -> its place in ``points``."""
        return {point: i for i, point in enumerate(self.points)}

    @functools.cached_property
    def members(self) -> Mapping[str, tuple[int, ...]]:
        """Variant -> its points, in the order of ``points``."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for i, point in enumerate(self.points):
            found[point.variant].append(i)
        return {variant: tuple(indices) for variant, indices in found.items()}

    @functools.cached_property
    def axes(self) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
        """Variant -> field -> its values in order, from the points: numbers by size, others as they come.

        Fields that have one value everywhere are no axes.
        """
        seen: defaultdict[str, defaultdict[str, dict[Any, None]]] = defaultdict(lambda: defaultdict(dict))
        for point in self.points:
            for field, value in point.config:
                seen[point.variant][field][value] = None
        return {
            variant: {f: tuple(sorted(v) if _numbers(v) else v) for f, v in fields.items() if len(v) > 1}
            for variant, fields in seen.items()
        }

    @functools.cached_property
    def ordered(self) -> Mapping[tuple[str, str], bool]:
        """(variant, field) -> whether its values have an order that a step can follow: they are numbers."""
        return {
            (variant, field): _numbers(values) for variant, axes in self.axes.items() for field, values in axes.items()
        }

    def neighbours(self, index: int) -> list[int]:
        """Points of the same variant that differ on one axis: by one step where it has an order, else by any value.

        A step goes over configurations that cannot run. A point that has no such neighbour (a default off the grid)
        has the nearest points of its variant.
        """
        point = self.points[index]
        found: list[int] = []
        for field, value in point.config:
            values = self.axes.get(point.variant, {}).get(field, ())
            if value not in values or len(values) < 2:
                continue
            place = values.index(value)
            if self.ordered[point.variant, field]:
                ways = [values[:place][::-1], values[place + 1 :]]
            else:
                ways = [(other,) for other in values if other != value]
            for way in ways:  # the first of its values that makes a point
                configs = (tuple((n, other if n == field else old) for n, old in point.config) for other in way)
                made = (Point(point.variant, config) for config in configs)
                found += [self.index[one] for one in made if one in self.index][:1]
        if found:
            return found
        # the points of the same variant at the least distance on its axes
        others = [i for i in self.members[point.variant] if i != index]
        away = {i: sum((a - b) ** 2 for a, b in zip(self.place(i), self.place(index), strict=True)) for i in others}
        return [i for i in others if away[i] <= min(away.values()) * (1 + 1e-9)]

    def place(self, index: int) -> tuple[float, ...]:
        """Where a point lies on each axis of its variant, from 0 (its first value) to 1 (its last)."""
        point = self.points[index]
        config = dict(point.config)
        return tuple(
            values.index(config[field]) / max(1, len(values) - 1)
            for field, values in self.axes.get(point.variant, {}).items()
        )


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def improvement(mean: Array, deviation: Array) -> Array:
    """Expected improvement on the best that was seen, as a share of it, for what ``believe`` says."""
    deviation = np.maximum(deviation, 1e-9)
    z = -mean / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return np.asarray(-mean * below + deviation * density)


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
        self.predicted = np.zeros(len(space))
        if any(space.predicted_s):
            # logarithms with mean 0 and deviation 1; 0 where there is no prediction
            logs = np.array([math.log(p) if p else math.nan for p in space.predicted_s])
            known = logs[~np.isnan(logs)]
            self.predicted = np.where(np.isnan(logs), 0.0, (logs - known.mean()) / (float(known.std()) or 1.0))

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


_geometry = functools.lru_cache(maxsize=16)(Geometry)


def believe(space: Space, seen: Seen) -> tuple[Array, Array]:
    """Mean and deviation of log(seconds / best seen) of every point, given those seen, of which one was timed at least.

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
            score, scale, solved, factor = _fit(_mixed(mix, inner), y - centre)
            if chosen is None or score > chosen[0]:
                outer = outer or geometry.likeness(everything, tried, length)
                across = _mixed(mix, outer)
                mean = centre + prior + across @ np.linalg.solve(factor.T, solved)
                half = np.linalg.solve(factor, across.T)
                own = sum(mix[:3]) + mix[3] * geometry.predicted**2
                left = np.maximum(own - (half * half).sum(axis=0), 0.0)
                chosen = score, mean, np.sqrt(scale * left)
    assert chosen is not None
    return chosen[1], chosen[2]


def _mixed(mix: Sequence[float], parts: Sequence[Array]) -> Array:
    """The parts, each at its share of the variance."""
    return np.asarray(sum(share * part for share, part in zip(mix, parts, strict=True)))


def _fit(k: Array, y: Array) -> tuple[float, float, Array, Array]:
    """(log marginal likelihood, variance, Cholesky factor's solution for y, that factor) of one choice of constants."""
    n = len(y)
    variance = max(float(y @ y) / n, 1e-4)

    def at(scale: float) -> tuple[float, float, Array, Array]:
        factor = np.asarray(np.linalg.cholesky(k + (NOISE**2 / scale + 1e-8) * np.eye(n)), dtype=np.float64)
        half = np.asarray(np.linalg.solve(factor, y), dtype=np.float64)
        score = -0.5 * float(half @ half) / scale - float(np.log(np.diag(factor)).sum()) - 0.5 * n * math.log(scale)
        return score, scale, half, factor

    return max(map(at, (0.3 * variance, variance, 3 * variance)), key=lambda found: found[0])
