"""The search space of one op and case.

A point is one configuration of one variant. Points of a variant lie on a grid of its axes, with holes where a
configuration cannot run; steps go along one axis at a time, over the holes.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Values = tuple[tuple[str, Any], ...]
"""A configuration as (field, value) in field order."""


Seen = Mapping[int, float | None]
"""Point of a space -> its seconds, in the order tried; None where it failed."""


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
    nothing. key: ``op/case``, the seed of random choices, so that a resumed search continues as it would have.
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
        found: defaultdict[str, list[int]] = defaultdict(list)
        for i, point in enumerate(self.points):
            found[point.variant].append(i)
        return {variant: tuple(indices) for variant, indices in found.items()}

    @functools.cached_property
    def ordered(self) -> Mapping[tuple[str, str], bool]:
        """(variant, field) -> whether its values have an order that a step can follow: they are numbers."""
        return {
            (variant, field): _numbers(values) for variant, axes in self.axes.items() for field, values in axes.items()
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
    seen: defaultdict[str, defaultdict[str, dict[Any, None]]] = defaultdict(lambda: defaultdict(dict))
    for point in points:
        for field, value in point.config:
            seen[point.variant][field][value] = None
    return {
        variant: {
            field: tuple(sorted(values) if _numbers(values) else values)
            for field, values in fields.items()
            if len(values) > 1
        }
        for variant, fields in seen.items()
    }


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
