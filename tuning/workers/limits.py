"""Limits of time and memory beyond which the worker of a candidate is killed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roofline import stats
from tuning.plan.budget import LONGEST_S, Budget
from tuning.plan.free_memory import memory_allowed
from tuning.record.journal_records import Candidate
from tuning.workers.messages import Stage

LEARNED_FROM = 5
"""Compilations after which the limit of a compilation follows from them."""

FLOOR_S = 10.0
"""The shortest learned limit in seconds: a busy machine is slow."""

SETUP_S = 600.0
"""Seconds for starting a process and for making inputs and their float64 reference."""


class Limits:
    """Seconds for each stage, learned from the run, and bytes.

    longest_s: of any stage of a candidate. memory_bytes: resident memory of a worker; by default a share of what is
    free.
    """

    def __init__(self, longest_s: float = LONGEST_S, memory_bytes: int = 0) -> None:
        self.longest_s = longest_s
        self.memory_bytes = memory_bytes or memory_allowed()
        self._compiled: list[float] = []
        self._budget: Budget | None = None
        self._field: Sequence[Candidate] = ()

    def begin(self, budget: Budget, field: Sequence[Candidate] = ()) -> None:
        """Say what the worker is asked next: to try a candidate, or to race those in ``field``."""
        self._budget, self._field = budget, field

    def seconds(self, stage: Stage) -> float:
        """The limit of a stage that begins now."""
        if stage.name == "compile":
            return self._compile_s()
        if stage.name == "check":
            self.learn(stage.seconds)  # its compilation has ended
            return min(self.longest_s, max(FLOOR_S, 10 * stage.seconds))
        if stage.name == "time" and self._budget is not None:
            calls = self._budget.least + 2
            return min(self.longest_s, max(FLOOR_S, 3 * self._budget.seconds + 3 * calls * stage.seconds))
        if stage.name == "race" and stage.index >= 0:
            return min(self.longest_s, max(FLOOR_S, 200 * stats.median(self._field[stage.index].samples_s)))
        return SETUP_S

    def learn(self, seconds: float) -> None:
        """Take note of how long a compilation took. The limit of later ones follows from these."""
        self._compiled.append(seconds)

    def _compile_s(self) -> float:
        if len(self._compiled) < LEARNED_FROM:
            return self.longest_s
        usual = float(np.quantile(self._compiled, 0.9))
        return min(self.longest_s, max(3 * FLOOR_S, 4 * usual))
