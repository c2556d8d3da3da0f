"""How much a run may try and measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Budget:
    """configs: most configurations per variant, spread over its space; 0 for all. thorough: take thorough cases too.

    seconds, least, most: a candidate is sampled until ``seconds`` have passed, at least ``least`` and at most ``most``
    times. rounds: most interleaved rounds of the final race; race_seconds: its time at most, beyond 5 rounds.
    finalists: candidates in the race besides the default and the best baseline.
    """

    configs: int
    thorough: bool
    seconds: float
    least: int
    most: int
    rounds: int
    race_seconds: float
    finalists: int


BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "quick": Budget(2, False, 0.03, 3, 5, 7, 0.5, 2),
        "default": Budget(5, False, 0.12, 3, 9, 21, 2.0, 3),
        "thorough": Budget(0, True, 0.5, 7, 51, 61, 20.0, 5),
    }
)
"""Budgets by their name on the command line."""

SLOW_FACTOR = 3.0
"""A candidate this much slower than the best so far is not sampled further; defaults and baselines are."""

HOPELESS_FACTOR = 8.0
"""Where a variant's first configuration is this much slower than the best, the others are skipped (not if thorough)."""

HOPELESS_ELSEWHERE = 25.0
"""A variant this much slower than the best at one case is skipped at later cases of the run with the same flags."""

INDIFFERENCE = 0.03
"""The default is replaced only for a gain above this and above the measured noise floor."""
