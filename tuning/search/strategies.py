"""Search strategies by name, and look-ahead. Plug-ins are entry points of griffin_kernels.strategies.

A strategy is a function of the points seen so far and keeps no state. A resumed search therefore continues exactly as
it would have, and replay can ask any strategy about any state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from griffin_kernels import errors
from roofline import stats
from tuning.search.basic import EXHAUSTIVE, LATIN_HYPERCUBE, LOCAL, RANDOM
from tuning.search.seeded import Seeded
from tuning.search.space import Seen, Space

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

    def next(self, space: Space, seen: Seen, left: int) -> int | None:
        """Index of the next point to try, one that was not seen; None: stop.

        seen: point -> seconds, in the order tried; None where it failed. left: evaluations left.
        """
        ...


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {own.name: own for own in (Seeded(), EXHAUSTIVE, RANDOM, LATIN_HYPERCUBE, LOCAL)}
)
"""This package's strategies by name."""


def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS) if point.name not in STRATEGIES}


def names() -> list[str]:
    """The names of all strategies: this package's, then plug-ins."""
    return [*STRATEGIES, *sorted(_plugins())]


def named(name: str) -> Strategy:
    """The strategy called ``name``; ArgumentError lists the names, or says what is wrong with a plug-in."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    point = _plugins().get(name)
    if point is None:
        raise errors.ArgumentError(f"no strategy {name!r}; there are {', '.join(names())}")
    what = f"strategy {name!r} ({point.value})"
    try:
        found = point.load()
        found = found() if isinstance(found, type) else found
    except Exception as error:  # a plug-in may raise anything
        raise errors.ArgumentError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}; repair or uninstall the package that offers it"
        ) from error
    if not isinstance(found, Strategy):
        needed = "it needs both (tuning.search.strategies.Strategy)"
        raise errors.ArgumentError(f"{what} has no name or no next(space, seen, left); {needed}")
    return found


def foresee(strategy: Strategy, space: Space, seen: Seen, left: int, pending: Collection[int] = ()) -> Iterator[int]:
    """Points that a strategy would choose next if every time were as expected. Lazy; ``seen`` may change meanwhile.

    seen, left: as ``Strategy.next`` takes them. pending: points that are being tried. A point that was not seen counts
    as the median of what was (the "constant liar" of Ginsbourger, Le Riche and Carraro, Kriging is well-suited to
    parallelize optimization, 2010, section 4), or where nothing was timed yet as what the static model says.
    """
    timed = [seconds for seconds in seen.values() if seconds is not None]
    usual = stats.median(timed) if timed else None
    supposed = {**seen}

    def suppose(index: int) -> None:
        supposed[index] = usual if usual is not None or not space.predicted_s else space.predicted_s[index]

    def points() -> Iterator[int]:
        for spare in range(left - len(pending), 0, -1):
            index = strategy.next(space, supposed, spare)
            if index is None:
                return
            yield index
            suppose(index)

    for index in pending:
        suppose(index)
    return points()
