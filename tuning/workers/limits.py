"""Limits of time and memory beyond which the worker of a candidate is killed."""

from __future__ import annotations

import numpy as np

from roofline import stats
from tuning.plan.budget import LONGEST_S
from tuning.plan.free_memory import memory_allowed
from tuning.workers.messages import Request, RunRace, Stage, Try

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

    def seconds(self, request: Request, stage: Stage) -> float:
        """The limit of a stage of a request that begins now."""
        if stage.name == "compile":
            if len(self._compiled) < LEARNED_FROM:
                return self.longest_s
            wanted = max(3 * FLOOR_S, 4 * float(np.quantile(self._compiled, 0.9)))
        elif stage.name == "check":
            self.learn(stage.seconds)  # its compilation has ended
            wanted = 10 * stage.seconds
        elif stage.name == "time" and isinstance(request, Try):
            wanted = 3 * request.budget.seconds + 3 * (request.budget.least + 2) * stage.seconds
        elif stage.name == "race" and isinstance(request, RunRace) and stage.index >= 0:
            wanted = 200 * stats.median(request.field[stage.index].record.samples_s)
        else:
            return SETUP_S
        return min(self.longest_s, max(FLOOR_S, wanted))

    def learn(self, seconds: float) -> None:
        """Take note of how long a compilation took. The limit of later ones follows from these."""
        self._compiled.append(seconds)
