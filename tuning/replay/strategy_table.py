"""The table of a replay: how far each strategy gets on each journal, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from tuning.replay.packed import Packed
from tuning.replay.simulate import Play, play, quarter
from tuning.search.strategies import Strategy

BUDGETS = (10, 25, 50)
"""Evaluations after which a strategy is asked what it has found."""

SEEDS = 5
"""Searches with other random choices and short, noisy measurements."""


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What one strategy reached on one journal with so many evaluations, as shares of the optimum.

    exact: with its own random choices and each point's median to see. mean, worst: over seeds, with other random
    choices and the median of a few samples to see. cost_s: mean simulated seconds.
    """

    evaluations: int
    exact: float
    mean: float
    worst: float
    cost_s: float


class StrategyRow(msgspec.Struct, frozen=True, kw_only=True):
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
    strategies: Mapping[str, Strategy],
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda text: None,
) -> list[StrategyRow]:
    """A row for each journal and strategy."""
    found: list[StrategyRow] = []
    for journal in journals:
        size = len(journal.points)
        budgets = {str(n): n for n in BUDGETS if n < size} | {"quarter": quarter(journal)}
        for strategy in strategies.values():
            say(f"{journal.name}: {strategy.name}")
            found.append(
                StrategyRow(
                    strategy=strategy.name,
                    journal=journal.name,
                    points=size,
                    optimum_s=journal.optimum_s,
                    uncertainty=journal.uncertainty,
                    everything_s=sum(point.seconds_spent for point in journal.points),
                    after={name: _reached(journal, strategy, n, seeds) for name, n in budgets.items()},
                )
            )
    return found


def _reached(journal: Packed, strategy: Strategy, evaluations: int, seeds: int) -> Reached:
    exact = play(journal, strategy, evaluations)
    others: list[Play] = [play(journal, strategy, evaluations, seed) for seed in range(seeds)] or [exact]
    return Reached(
        evaluations=evaluations,
        exact=exact.reached,
        mean=float(np.mean([p.reached for p in others])),
        worst=min(p.reached for p in others),
        cost_s=float(np.mean([p.cost_s for p in others])),
    )


def show(console: Console, found: Sequence[StrategyRow]) -> None:
    """For each journal a table: strategy, per budget ``exact (mean, worst)``, cost of a quarter of the points."""
    for journal, group in itertools.groupby(found, key=lambda row: row.journal):
        own = list(group)
        first = own[0]
        title = (
            f"{journal}: {first.points} points, optimum +-{first.uncertainty:.1%}, all cost {first.everything_s:.2f} s"
        )
        console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(_table(own), highlight=False)
    console.print(LEGEND, highlight=False, markup=False, soft_wrap=True)


def _table(found: Sequence[StrategyRow]) -> Table:
    drawn = Table(header_style="bold", pad_edge=False, box=None)
    names = [*map(str, BUDGETS), "quarter"]
    for heading in ("strategy", *(f"after {n}" for n in BUDGETS), "after 25%", "cost of 25%"):
        drawn.add_column(heading, justify="left" if heading == "strategy" else "right", no_wrap=True)
    for row in found:
        cells = [_cell(row.after.get(name)) for name in names]
        drawn.add_row(row.strategy, *cells, f"{row.after['quarter'].cost_s:.2f} s")
    return drawn


def _cell(reached: Reached | None) -> str:
    return "" if reached is None else f"{reached.exact:.1%} ({reached.mean:.0%}, {reached.worst:.0%})"


LEGEND = (
    "% of the exhaustive optimum: as recorded (mean, worst over seeds with short, noisy measurements). "
    "Cost: simulated seconds."
)
