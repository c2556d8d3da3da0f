"""Search strategies on the shipped journals, by replay; the table that ``tune replay`` prints."""

from __future__ import annotations

from rich.console import Console

from tuning.replay import packed, simulate
from tuning.search.strategies import DEFAULT, STRATEGIES


def test_strategies_on_all_shipped_journals():
    """The default reaches 98% of the optimum of each journal with a quarter of the evaluations."""
    rows = simulate.rows(packed.shipped(), list(STRATEGIES.values()))
    simulate.show(Console(width=140), rows)
    behind = [row.journal for row in rows if row.strategy == DEFAULT and row.after["quarter"].exact < 0.98]
    assert rows and not behind
