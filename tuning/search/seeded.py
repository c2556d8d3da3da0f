"""The default strategy: what is known, then a spread-out sample, then a model and the neighbours of the best in turn.

A fifth of the evaluations: the seeds and a Latin hypercube over all variants. Then, again and again, two points with
the largest expected improvement by a model of what was seen, and one neighbour of the best few, the most promising by
the model. The model finds the region in few steps; the neighbours are what it is too sure about, and make the polish
complete where there are evaluations for it. A variant far behind gets no further points: the model expects nothing.
"""

from __future__ import annotations

import functools

import numpy as np

from tuning.search.basic import first_unseen, ranked, spread
from tuning.search.space import Seen, Space
from tuning.search.surrogate import Geometry, believe

SAMPLE = 0.2
"""Share of the evaluations that go to the seeds and to the spread-out sample."""

POLISH_EVERY = 3
"""One in so many evaluations is a neighbour of the best."""

CENTRES = 3
"""Points whose neighbours are all tried in the end."""


@functools.lru_cache(maxsize=16)
def _geometry(space: Space) -> Geometry:
    return Geometry(space)


class Seeded:
    """Seeds, a spread-out sample, then expected improvement and the neighbours of the best in turn."""

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
        belief = believe(space, _geometry(space), seen)
        if len(seen) % POLISH_EVERY == 0:
            for centre in best[:CENTRES]:
                around = [i for i in space.neighbours(centre) if i not in seen]
                if around:
                    return min(around, key=lambda i: (belief.mean[i], i))
        promise = belief.improvement()
        promise[list(seen)] = -np.inf
        return int(np.argmax(np.round(promise, 9)))  # rounded: the last bits differ from machine to machine
