"""Simulates strategies on packed journals: how far each gets, at what cost, and the table of both."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from rich.console import Console

from griffin_kernels import errors
from roofline.console import line, table
from tuning.plan.budget import BUDGETS
from tuning.replay.packed import Packed
from tuning.search.strategies import Strategy

SAMPLES = BUDGETS["default"].least
"""Samples that a simulated measurement is the median of, as in a default run at the least."""

FINALISTS = BUDGETS["default"].finalists
"""Points that go into the final race, as in a default run: the best of them counts as found."""

EVALUATIONS = (10, 25, 50)
"""Evaluations after which a strategy is asked what it has found."""

SEEDS = 5
"""Searches with other random choices and short, noisy measurements."""


class Play(NamedTuple):
    """One search. tried: points in order; reached: optimum over the best finalist's seconds, 1 is all there is.

    cost_s: simulated seconds: what the tuner that made the journal spent on the points that were tried.
    """

    tried: tuple[int, ...]
    reached: float
    cost_s: float


def play(packed: Packed, strategy: Strategy, evaluations: int, seed: int | None = None) -> Play:
    """Let ``strategy`` try ``evaluations`` points of a journal at most.

    seed: None shows it each point's median; a number makes other random choices and shows it the median of a few of the
    samples, as one short timing would. Either way it is judged by medians over all samples. ArgumentError where the
    strategy answers with a point that is not there or was tried.
    """
    space = packed.space if seed is None else dataclasses.replace(packed.space, key=f"{packed.space.key}#{seed}")
    seen: dict[int, float | None] = {}
    while len(seen) < min(evaluations, len(space)):
        index = strategy.next(space, seen, evaluations - len(seen))
        if index is None:
            break
        if index in seen or not 0 <= index < len(space):
            what = "which it had tried" if index in seen else f"there are {len(space)}"
            raise errors.ArgumentError(f"strategy {strategy.name!r} chose point {index}, {what}; it must be repaired")
        seen[index] = _observed(packed, index, seed)
    finalists = sorted((s, i) for i, s in seen.items() if s is not None)[:FINALISTS]
    found = min((packed.seconds[i] or math.inf for _, i in finalists), default=math.inf)
    cost = sum(packed.points[i].seconds_spent for i in seen)
    return Play(tuple(seen), packed.optimum_s / found, cost)


def _observed(packed: Packed, index: int, seed: int | None) -> float | None:
    """The simulated measurement of a point in seconds."""
    samples = packed.samples[index]
    if seed is None or not len(samples):
        return packed.seconds[index]
    picks = random.Random(f"{packed.space.key}#{seed}/{index}").sample(range(len(samples)), min(SAMPLES, len(samples)))
    return float(np.median(samples[picks]))


class Reached(msgspec.Struct, frozen=True):
    """What one strategy reached on one journal with so many evaluations, as shares of the optimum.

    exact: with its own random choices and each point's median to see. mean, worst: over seeds, with other random
    choices and the median of a few samples to see. cost_s: mean simulated seconds.
    """

    evaluations: int
    exact: float
    mean: float
    worst: float
    cost_s: float


class StrategyRow(msgspec.Struct, frozen=True):
    """One strategy on one journal. after: by evaluations, ``"10"``, ``"25"``, ``"50"`` and ``"quarter"`` of the points.

    Budgets beyond the size of the space are left out. optimum_s: seconds of the fastest point; uncertainty: half the
    width of its interval, as a share. everything_s: simulated seconds of trying every point.
    """

    strategy: str
    journal: str
    points: int
    optimum_s: float
    uncertainty: float
    everything_s: float
    after: dict[str, Reached]


def rows(
    journals: Sequence[Packed],
    strategies: Sequence[Strategy],
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda text: None,
) -> list[StrategyRow]:
    """A row for each journal and strategy."""
    found: list[StrategyRow] = []
    for journal in journals:
        size = len(journal.points)
        budgets = {str(n): n for n in EVALUATIONS if n < size} | {"quarter": math.ceil(size / 4)}
        everything_s = sum(point.seconds_spent for point in journal.points)
        facts = (journal.name, size, journal.optimum_s, journal.uncertainty, everything_s)
        for strategy in strategies:
            say(f"{journal.name}: {strategy.name}")
            after = {name: _reached(journal, strategy, n, seeds) for name, n in budgets.items()}
            found.append(StrategyRow(strategy.name, *facts, after))
    return found


def _reached(journal: Packed, strategy: Strategy, evaluations: int, seeds: int) -> Reached:
    exact = play(journal, strategy, evaluations)
    others: list[Play] = [play(journal, strategy, evaluations, seed) for seed in range(seeds)] or [exact]
    reached, costs = [p.reached for p in others], [p.cost_s for p in others]
    return Reached(evaluations, exact.reached, float(np.mean(reached)), min(reached), float(np.mean(costs)))


def show(console: Console, found: Sequence[StrategyRow]) -> None:
    """For each journal a table: strategy, per budget ``exact (mean, worst)``, cost of a quarter of the points."""
    names = [*map(str, EVALUATIONS), "quarter"]
    for journal, group in itertools.groupby(found, key=lambda row: row.journal):
        own = list(group)
        first = own[0]
        size = f"{first.points} points, optimum +-{first.uncertainty:.1%}, all cost {first.everything_s:.2f} s"
        line(console, f"{journal}: {size}", "bold")
        drawn = table(["strategy"], [*(f"after {n}" for n in EVALUATIONS), "after 25%", "cost of 25%"])
        for row in own:
            shares = [row.after.get(name) for name in names]
            cells = [f"{r.exact:.1%} ({r.mean:.0%}, {r.worst:.0%})" if r is not None else "" for r in shares]
            drawn.add_row(row.strategy, *cells, f"{row.after['quarter'].cost_s:.2f} s")
        console.print(drawn)
    shown = "as recorded (mean, worst over seeds with short, noisy measurements)"
    line(console, f"% of the exhaustive optimum: {shown}. Cost: simulated seconds.")
