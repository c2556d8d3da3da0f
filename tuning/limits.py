"""How long and how large a candidate may get before its worker is killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roofline import stats
from tuning.budget import LONGEST_S, Budget
from tuning.messages import Stage
from tuning.records import Candidate

LEARNED_FROM = 5
"""Compilations after which the limit of a compilation follows from them."""

FLOOR_S = 10.0
"""No learned limit is shorter: a busy machine takes its time."""

SETUP_S = 600.0
"""Starting a process, making inputs and their float64 reference: no candidate's fault."""

MEMORY_SHARE = 0.8
"""Of the memory that is free when a case is taken up."""


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
        """Tell what is asked next: a candidate, or a race of these."""
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
        """A compilation took so long; later ones are limited by what is usual."""
        self._compiled.append(seconds)

    def _compile_s(self) -> float:
        if len(self._compiled) < LEARNED_FROM:
            return self.longest_s
        usual = float(np.quantile(self._compiled, 0.9))
        return min(self.longest_s, max(3 * FLOOR_S, 4 * usual))


def memory_allowed() -> int:
    """A share of the memory that this machine, or this container, has free now; no limit where nothing tells."""
    free = [_meminfo("MemAvailable"), _cgroup_room()]
    known = [value for value in free if value is not None]
    return int(MEMORY_SHARE * min(known)) if known else 2**62


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _cgroup_room() -> int | None:
    """Bytes left to this control group (version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = (
            (folder / "memory.max").read_text(encoding="utf-8").strip(),
            (folder / "memory.current").read_text(encoding="utf-8").strip(),
        )
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - int(used))
