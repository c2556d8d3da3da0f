"""Search strategies by name, and look-ahead. Plug-ins are entry points of griffin_kernels.strategies.

A strategy is a function of the points seen so far and keeps no state. A resumed search therefore continues exactly as
it would have, and replay can ask any strategy about any state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from griffin_kernels import errors
from roofline import stats
from tuning.search.space import Space

ENTRY_POINTS = "griffin_kernels.strategies"
"""Group of entry points in which other packages offer strategies: an object, or a class without arguments."""

DEFAULT = "seeded"
"""The strategy of spaces of which not every point is tried."""


@runtime_checkable
class Strategy(Protocol):
    """Chooses the next point. Equal arguments give equal answers; nothing is remembered between calls.

    Threads ask at the same time: for what is tried next, and for what will be (``foresee``).
    """

    name: str

    def next(self, space: Space, seen: Mapping[int, float | None], left: int) -> int | None:
        """Index of the next point to try, one that was not seen; None: stop.

        seen: point -> seconds, in the order tried; None where it failed. left: evaluations left.
        """
        ...


class _Table(Mapping[str, Strategy]):
    """Strategies of this package and of plug-ins. A plug-in is imported when it is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Strategy] = {}

    @functools.cached_property
    def _own(self) -> Mapping[str, type[Strategy]]:
        from tuning.search import basic
        from tuning.search.seeded import Seeded

        kinds: tuple[Any, ...] = (
            Seeded,
            basic.Exhaustive,
            basic.Random,
            basic.LatinHypercube,
            basic.Local,
        )
        return {kind.name: kind for kind in kinds}

    @functools.cached_property
    def _plugins(self) -> Mapping[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS) if point.name not in self._own}

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from sorted(self._plugins)

    def __len__(self) -> int:
        return len(self._own) + len(self._plugins)

    def __getitem__(self, name: str) -> Strategy:
        if name not in self._loaded:
            self._loaded[name] = self._own[name]() if name in self._own else _plugin(self._plugins[name])
        return self._loaded[name]


def _plugin(point: metadata.EntryPoint) -> Strategy:
    """The strategy of an entry point; ArgumentError says what is wrong with it."""
    try:
        found = point.load()
        found = found() if isinstance(found, type) else found
    except Exception as error:  # a plug-in may raise anything
        raise errors.ArgumentError(
            f"strategy {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}; "
            "repair or uninstall the package that offers it"
        ) from error
    if not isinstance(found, Strategy):
        raise errors.ArgumentError(
            f"strategy {point.name!r} ({point.value}) has no name or no next(space, seen, left); "
            "it needs both (tuning.search.strategies.Strategy)"
        )
    return found


STRATEGIES: Mapping[str, Strategy] = _Table()
"""Every strategy by name: this package's, then plug-ins."""


def named(name: str) -> Strategy:
    """The strategy called ``name``; ArgumentError lists the names."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise errors.ArgumentError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}") from None


def foresee(
    strategy: Strategy, space: Space, seen: Mapping[int, float | None], left: int, pending: Collection[int] = ()
) -> Iterator[int]:
    """Points that a strategy would choose next if every time were as expected. Lazy; ``seen`` may change meanwhile.

    seen, left: as ``Strategy.next`` takes them. pending: points that are being tried. A point that was not seen counts
    as the median of what was (the "constant liar" of Ginsbourger, Le Riche and Carraro, Kriging is well-suited to
    parallelize optimization, 2010, section 4), or where nothing was timed yet as what the static model says.
    """
    timed = [seconds for seconds in seen.values() if seconds is not None]
    usual = stats.median(timed) if timed else None

    def supposed(index: int) -> float | None:
        if usual is not None or not space.predicted_s:
            return usual
        return space.predicted_s[index]

    return _foreseen(strategy, space, {**seen, **{i: supposed(i) for i in pending}}, left - len(pending), supposed)


def _foreseen(
    strategy: Strategy,
    space: Space,
    seen: dict[int, float | None],
    left: int,
    supposed: Callable[[int], float | None],
) -> Iterator[int]:
    while left > 0 and (index := strategy.next(space, seen, left)) is not None:
        yield index
        seen[index] = supposed(index)
        left -= 1
