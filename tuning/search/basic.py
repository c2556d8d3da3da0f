"""Search strategies without a model: exhaustive, random, Latin hypercube, local search. They are baselines."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuning.search.space import Seen, Space


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


EXHAUSTIVE = InOrder("exhaustive", lambda space, seen, left: range(len(space)))
"""Every point, in the order of the space."""

RANDOM = InOrder("random", lambda space, seen, left: shuffled(space, "random", range(len(space))))
"""Points in random order."""

LATIN_HYPERCUBE = InOrder("lhs", lambda space, seen, left: spread(space, len(seen) + left))
"""Points spread over all variants and evenly along every axis."""

LOCAL = InOrder("local", _downhill)
"""Steepest descent from the seeds, with random restarts."""
