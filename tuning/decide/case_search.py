"""The search of one case: candidates that are always tried, the next to try, and those that will probably follow."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from griffin_kernels import registry
from griffin_kernels.contract import config_dict
from griffin_kernels.device import Device
from tuning.plan.budget import Budget
from tuning.plan.planner import Job, Planned
from tuning.predict import predictor
from tuning.search.space import Point, Seen, Space
from tuning.search.strategies import DEFAULT, foresee, named

OPENING = 16
"""Points that are foreseen before anything is timed. What search chooses after them depends on the first times."""

STATIC_SEEDS = 8
"""Points that a static model likes best and that are tried first (8 to 16 keep 96% to 99% of the optimum:
nvMatmulHeuristics on H100 and B200)."""


class CaseSearch:
    """Which candidates of a job are tried, and in which order. It keeps no state: callers say what was tried.

    certain: the default and the baselines, which are tried first. points: what search chooses among, by their index in
    ``space``; the default is one of them. allowed: how many points may be tried. entry: what is published of this very
    case. incumbent: the point that it names.
    """

    def __init__(
        self, job: Job, device: Device, budget: Budget, strategy: str = "", published: registry.Registry | None = None
    ) -> None:
        """strategy: by name; empty for the one that suits. published: entries of the device, tried early."""
        self.job = job
        self.certain = [p for p in job.candidates if p.reason is None and (p is job.default or p.variant.baseline)]
        self.points = job.competitors
        matches = [] if published is None else published.matches(job.op, job.case)
        near = [(m.variant.name, config_dict(m.config)) for m in matches]
        self.entry = next((m.entry for m in matches if m.distance == 0 and m.entry.status == "measured"), None)
        held = None if self.entry is None else (self.entry.variant, self.entry.config)
        self.incumbent = next((p for p in self.points if (p.variant.name, config_dict(p.config)) == held), None)
        self.space = space_of(job, device, near, None if device.kind == "cpu" else predictor.expected(job, device))
        self._named = strategy
        self.allow(budget.tries(len(self.points)))

    def allow(self, tries: int) -> None:
        """Set how many points may be tried in all."""
        self.allowed = min(tries, len(self.points))
        usual = "exhaustive" if self.allowed == len(self.points) else DEFAULT
        self._strategy = named(self._named or usual)

    def next(self, seen: Seen, tried: int) -> int | None:
        """The next point to try; None where the search is over. tried: those of ``seen`` that were not skipped."""
        left = self.allowed - tried
        return self._strategy.next(self.space, seen, left) if left > 0 else None

    def coming(self, seen: Seen, tried: int, pending: Collection[int] = ()) -> Iterator[Planned]:
        """What search will choose next if times are as it expects. pending: points that are being tried."""
        found = foresee(self._strategy, self.space, seen, self.allowed - tried, pending)
        return (self.points[index] for index in found)

    def opening(self) -> Iterator[Planned]:
        """The first candidates of a case: the certain ones, then those that search probably begins with."""
        yield from self.certain
        default = [i for i, p in enumerate(self.points) if p is self.job.default]
        yield from itertools.islice(self.coming({}, 0, default), OPENING)


def space_of(
    job: Job, device: Device, incumbents: Sequence[tuple[str, Any]] = (), predicted: Mapping[int, float] | None = None
) -> Space:
    """The space of a job; point i is ``job.competitors[i]``.

    incumbents: (variant, config) of what is in use now and of the nearest devices' winners, in that order; those that
    this package no longer has, or that cannot run here, are left out. predicted: seconds by a static model, by the id
    of a candidate.
    """
    planned = job.competitors
    points = tuple(Point(p.variant.name, tuple(config_dict(p.config).items())) for p in planned)
    seeds = [i for i, p in enumerate(planned) if p is job.default]
    for variant, config in incumbents:
        seeds += [i for i, point in enumerate(points) if (point.variant, dict(point.config)) == (variant, config)]
    seconds = tuple(predicted.get(id(p)) for p in planned) if predicted is not None else ()
    known = [(s, i) for i, s in enumerate(seconds) if s is not None]
    seeds += [i for _, i in sorted(known)[:STATIC_SEEDS]]
    return Space(points, tuple(dict.fromkeys(seeds)), seconds, f"{job.op.name}/{job.case.key}/{device.slug}")
