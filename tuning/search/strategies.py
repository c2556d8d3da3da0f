"""Search strategies by name, and look-ahead. Plug-ins are entry points of griffin_kernels.strategies.

A strategy is a function of the points seen so far and keeps no state. A resumed search therefore continues exactly as
it would have, and replay can ask any strategy about any state. All strategies but the default are baselines, which
work without a model.

The default, ``Seeded``, spends a fifth of the evaluations on the seeds and a Latin hypercube over all variants. Then,
again and again, it tries two points with the largest expected improvement by a model of what was seen, and one
neighbour of the best few, the most promising by the model. The model finds the region in few steps; the neighbours are
what it is too sure about, and make the polish complete where there are evaluations for it. A variant far behind gets no
further points: the model expects nothing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, runtime_checkable

import numpy as np

from griffin_kernels import errors
from roofline import stats
from tuning.search.space import Seen, Space, believe, improvement

ENTRY_POINTS = "griffin_kernels.strategies"
"""Group of entry points in which other packages offer strategies: an object, or a class without arguments."""

DEFAULT = "seeded"
"""The strategy of spaces of which not every point is tried."""

SAMPLE = 0.2
"""Share of the evaluations that go to the seeds and to the spread-out sample."""

POLISH_EVERY = 3
"""One in so many evaluations is a neighbour of the best."""

CENTRES = 3
"""Points whose neighbours are all tried in the end."""


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


def dice(space: Space, purpose: str) -> random.Random:
    """Random numbers that depend on the space and the purpose, and on nothing else."""
    return random.Random(hashlib.sha256(f"{space.key}/{purpose}/{len(space)}".encode()).digest())


def shuffled(space: Space, purpose: str, points: Sequence[int]) -> list[int]:
    return dice(space, purpose).sample(points, len(points))


def first_unseen(order: Iterable[int], seen: Seen) -> int | None:
    """The first point of ``order`` that was not tried; None where all were."""
    return next((i for i in order if i not in seen), None)


def ranked(seen: Seen) -> list[int]:
    """Points that did not fail, the fastest first."""
    timed = [(seconds, i) for i, seconds in seen.items() if seconds is not None]
    return [i for _, i in sorted(timed)]


@dataclass
class InOrder:
    """Tries the seeds, then the points of an order. order: (space, seen, left) -> points, which may have been tried."""

    name: str
    order: Callable[[Space, Seen, int], Iterable[int]]

    def next(self, space: Space, seen: Seen, left: int) -> int | None:
        """See ``Strategy``."""
        points = itertools.chain(space.seeds, self.order(space, seen, left)) if left > 0 else ()
        return first_unseen(points, seen)


def _downhill(space: Space, seen: Seen, left: int) -> Iterator[int]:
    """All neighbours of the best, and again from there; random restarts when none helps."""
    for best in ranked(seen)[:1]:
        yield from shuffled(space, f"step {best}", space.neighbours(best))
    # the best is a local optimum: go down from the last restart, and restart where that has arrived
    for i in reversed(list(seen)):
        here = seen[i]
        if here is not None and all((seen.get(n) or here) >= here for n in space.neighbours(i)):
            yield from space.neighbours(i)
    yield from shuffled(space, "restart", range(len(space)))


@functools.lru_cache(maxsize=16)
def spread(space: Space, count: int) -> tuple[int, ...]:
    """A Latin-hypercube sample: all points in an order whose first ``count`` are spread out, at least one per variant.

    Variants get places in proportion to their points. Within a variant each axis is cut into as many equal strata as
    the variant has places, each stratum is hit once, in random combination; a hole takes the nearest point that is
    left. What is beyond ``count`` follows in random order.
    """
    rng = dice(space, "spread")
    shares = _shares({variant: len(members) for variant, members in space.members.items()}, min(count, len(space)))
    chosen: list[int] = []
    for variant, places in shares.items():
        chosen += _hypercube(space, variant, places, rng)
    rng.shuffle(chosen)
    rest = sorted(set(range(len(space))) - set(chosen))
    return (*chosen, *rng.sample(rest, len(rest)))


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """``count`` places over variants in proportion to their sizes, by largest remainders; one each while they last."""
    total = sum(sizes.values())
    if count <= len(sizes):
        largest = sorted(sizes, key=lambda v: -sizes[v])[:count]
        return {v: 1 for v in sizes if v in largest}
    exact = {v: count * size / total for v, size in sizes.items()}
    found = {v: min(sizes[v], max(1, int(exact[v]))) for v in sizes}
    while sum(found.values()) < count:
        open_ = [v for v in sizes if found[v] < sizes[v]]
        found[max(open_, key=lambda v: exact[v] - found[v])] += 1
    while sum(found.values()) > count:
        found[max(found, key=lambda v: found[v] - exact[v] if found[v] > 1 else -1e9)] -= 1
    return found


def _hypercube(space: Space, variant: str, places: int, rng: random.Random) -> list[int]:
    """``places`` points of one variant, spread evenly along each of its axes."""
    members = list(space.members[variant])
    if places >= len(members):
        return members
    where = np.array([space.place(i) for i in members]).reshape(len(members), -1)
    columns = [rng.sample(range(places), places) for _ in range(where.shape[1])]
    taken: list[int] = []
    for k in range(places):
        target = np.array([(column[k] + rng.random()) / places for column in columns])
        away = ((where - target) ** 2).sum(axis=1)
        away[taken] = np.inf
        taken.append(int(np.argmin(away)))
    return [members[i] for i in taken]


class Seeded:
    """The default: seeds, a spread-out sample, then expected improvement and the neighbours of the best in turn."""

    name = "seeded"

    def next(self, space: Space, seen: Seen, left: int) -> int | None:
        """A point until no evaluation or no point is left; see ``Strategy``."""
        if left <= 0 or len(seen) >= len(space):
            return None
        known = first_unseen(space.seeds, seen)
        if known is not None:
            return known
        sample = int(SAMPLE * (len(seen) + left))
        best = ranked(seen)
        if len(seen) < sample or not best:
            return first_unseen(spread(space, max(1, sample - len(space.seeds))), seen)
        mean, deviation = believe(space, seen)
        if len(seen) % POLISH_EVERY == 0:
            for centre in best[:CENTRES]:
                around = [i for i in space.neighbours(centre) if i not in seen]
                if around:
                    return min(around, key=lambda i: (mean[i], i))
        promise = improvement(mean, deviation)
        promise[list(seen)] = -np.inf
        return int(np.argmax(np.round(promise, 9)))  # rounded: the last bits differ from machine to machine


STRATEGIES: Mapping[str, Strategy] = {
    own.name: own
    for own in (
        Seeded(),
        InOrder("exhaustive", lambda space, seen, left: range(len(space))),
        InOrder("random", lambda space, seen, left: shuffled(space, "random", range(len(space)))),
        InOrder("lhs", lambda space, seen, left: spread(space, len(seen) + left)),
        InOrder("local", _downhill),
    )
}
"""This package's strategies by name: the default; every point in the order of the space; points in random order; points
spread over all variants and evenly along every axis; steepest descent with random restarts."""


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
