"""What competes for one op and case, as points that a strategy can count, compare and step between.

A point is one configuration of one variant. Points of a variant lie on a grid of its axes, with holes where a
configuration cannot run; steps go along one axis at a time, over the holes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import config_dict
from griffin_kernels.device import Device
from tuning.plan import Job, Planned

STATIC_SEEDS = 8
"""Points that a static model likes best and that are tried first (8 to 16 keep 96% to 99% of the optimum:
nvMatmulHeuristics on H100 and B200)."""

Values = tuple[tuple[str, Any], ...]
"""A configuration as (field, value) in field order."""


@dataclass(frozen=True)
class Point:
    """One configuration of one variant."""

    variant: str
    config: Values


@dataclass(frozen=True, eq=False)  # compared by identity, so that what is worked out of a space can be kept
class Space:
    """Everything that competes for one op and case, baselines left out.

    axes: variant -> field -> its values in order. seeds: points to try first, in order: default, incumbent, winners of
    the nearest device, what a static model likes best. predicted_s: seconds by a static model, one for each point, or
    nothing. key: ``op/case``; random choices are seeded with it, so that a resumed search goes on as an unbroken one.
    """

    points: tuple[Point, ...]
    axes: Mapping[str, Mapping[str, tuple[Any, ...]]]
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
        found: dict[str, list[int]] = {}
        for i, point in enumerate(self.points):
            found.setdefault(point.variant, []).append(i)
        return {variant: tuple(indices) for variant, indices in found.items()}

    @functools.cached_property
    def ordered(self) -> Mapping[tuple[str, str], bool]:
        """(variant, field) -> whether its values have an order that a step can follow: they are numbers."""
        return {
            (variant, field): all(isinstance(value, int | float) for value in values)
            for variant, axes in self.axes.items()
            for field, values in axes.items()
        }

    @functools.cached_property
    def _adjacent(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self._steps(i)) for i in range(len(self.points)))

    def neighbours(self, index: int) -> list[int]:
        """Points of the same variant that differ on one axis: by one step where it has an order, else by any value.

        A step goes over configurations that cannot run. A point that has no such neighbour (a default off the grid)
        has the nearest points of its variant.
        """
        return list(self._adjacent[index])

    def _steps(self, index: int) -> list[int]:
        point = self.points[index]
        found: list[int] = []
        for field, value in point.config:
            values = self.axes.get(point.variant, {}).get(field, ())
            if value not in values or len(values) < 2:
                continue
            place = values.index(value)
            if self.ordered[point.variant, field]:
                found += self._first(point, field, reversed(values[:place]))
                found += self._first(point, field, values[place + 1 :])
            else:
                found += [i for other in values if other != value for i in self._first(point, field, (other,))]
        return found or self._nearest(index)

    def _first(self, point: Point, field: str, values: Iterable[Any]) -> list[int]:
        """The first of ``values`` that makes a point, as a list of one or none."""
        for value in values:
            config = tuple((name, value if name == field else old) for name, old in point.config)
            found = self.index.get(Point(point.variant, config))
            if found is not None:
                return [found]
        return []

    def _nearest(self, index: int) -> list[int]:
        """The points of the same variant at the least distance on its axes."""
        others = [i for i in self.members[self.points[index].variant] if i != index]
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


def axes_of(points: Iterable[Point]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """variant -> field -> values in order, from the points themselves: numbers by size, others as they come.

    Fields that have one value everywhere are no axes.
    """
    seen: dict[str, dict[str, dict[Any, None]]] = {}
    for point in points:
        for field, value in point.config:
            seen.setdefault(point.variant, {}).setdefault(field, {})[value] = None
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for variant, fields in seen.items():
        found[variant] = {}
        for field, values in fields.items():
            if len(values) > 1:
                numbers = all(isinstance(value, int | float) for value in values)
                found[variant][field] = tuple(sorted(values)) if numbers else tuple(values)
    return found


def competitors(job: Job) -> list[Planned]:
    """The candidates of a job that a search chooses among, in the order of the points of its space."""
    return [p for p in job.candidates if p.reason is None and not p.variant.baseline]


def space_of(
    job: Job,
    device: Device,
    *,
    incumbents: Sequence[tuple[str, Mapping[str, Any]]] = (),
    predicted: Callable[[Planned], float | None] | None = None,
) -> Space:
    """The space of a job; point i is ``competitors(job)[i]``.

    incumbents: (variant, config) of what is in use now and of the nearest devices' winners, in that order; those that
    this package no longer has, or that cannot run here, are left out. predicted: seconds by a static model.
    """
    planned = competitors(job)
    points = tuple(Point(p.variant.name, tuple(config_dict(p.config).items())) for p in planned)
    place = {point: i for i, point in enumerate(points)}
    seeds = [i for i, p in enumerate(planned) if p is job.default]
    for variant, config in incumbents:
        found = next(
            (i for point, i in place.items() if point.variant == variant and dict(point.config) == config), None
        )
        seeds += [] if found is None else [found]
    seconds = tuple(predicted(p) for p in planned) if predicted is not None else ()
    known = [(s, i) for i, s in enumerate(seconds) if s is not None]
    seeds += [i for _, i in sorted(known)[:STATIC_SEEDS]]
    return Space(
        points=points,
        axes=axes_of(points),
        seeds=tuple(dict.fromkeys(seeds)),
        predicted_s=seconds,
        key=f"{job.op.name}/{job.case.key}/{device.slug}",
    )
