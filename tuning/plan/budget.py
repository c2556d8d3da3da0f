"""How much a run may try and measure, and the memory that it may use."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EXHAUSTIVE = 300
"""Candidates of a case up to which a thorough run tries them all."""


@dataclass(frozen=True)
class Budget:
    """share: of a case's candidates, how many search may try: at least least_tries, at most most_tries.
    thorough: take thorough cases too, and try every candidate where there are at most EXHAUSTIVE.

    seconds, least, most: a candidate is sampled until ``seconds`` have passed, at least ``least`` and at most ``most``
    times. rounds: most interleaved rounds of the final race; race_seconds: its time at most, beyond 5 rounds.
    finalists: candidates in the race besides the default and the best baseline.
    hurried: tries at least where time is short. gpu_minutes: what a run on a GPU is planned for, where there are ten
    times as many candidates as on a CPU, which has no limit. gpu_compiled: whether it has the baselines of
    torch.compile and of other projects, whose compiling nothing can do ahead.
    """

    share: float
    least_tries: int
    most_tries: int
    thorough: bool
    seconds: float
    least: int
    most: int
    rounds: int
    race_seconds: float
    finalists: int
    hurried: int
    gpu_minutes: float
    gpu_compiled: bool

    @property
    def searches(self) -> bool:
        """Whether search tries candidates beyond published entries, defaults and baselines."""
        return self.share > 0

    def tries(self, points: int) -> int:
        """How many of a case's candidates search may try; baselines do not count."""
        if self.thorough and self.searches and points <= EXHAUSTIVE:
            return points
        return min(points, self.most_tries, max(self.least_tries, math.ceil(self.share * points)))


BUDGETS: Mapping[str, Budget] = {
    "quick": Budget(0.1, 4, 8, False, 0.03, 3, 5, 7, 0.3, 2, 2, 9.0, False),
    "default": Budget(0.25, 6, 60, False, 0.12, 3, 9, 641, 2.0, 3, 4, 21.0, True),
    "thorough": Budget(0.25, 75, 600, True, 0.5, 7, 51, 1281, 20.0, 5, 8, math.inf, True),
}
"""Budgets by their name on the command line."""

CEILINGS_S: Mapping[str, float] = {"quick": 2.0, "default": 4.0, "thorough": 15.0}
"""Seconds of sampling the device's ceilings before the first race, by budget. Making the buffers takes two more."""

CEILINGS_SHARE = 0.05
"""Of the minutes that a run is given, at most, for that sampling."""


def ceilings_s(budget: str, minutes: float) -> float:
    """Seconds for which a run samples the ceilings. minutes: that the run is given; 0 for no limit."""
    return min(CEILINGS_S[budget], CEILINGS_SHARE * 60 * minutes or math.inf)


LONGEST_S = 120.0
"""Seconds that any stage of a candidate may take, unless the user says otherwise."""

SLOW_FACTOR = 3.0
"""A candidate this much slower than the best so far is not sampled further; defaults and baselines are."""

HOPELESS_FACTOR = 8.0
"""Where a variant's first configuration is this much slower than the best, the others are skipped (not if thorough)."""

HOPELESS_ELSEWHERE = 25.0
"""A variant this much slower than the best at one case is skipped at later cases of the run with the same flags."""

UNQUIET = 0.20
"""A race whose own noise floor is above this decides nothing: it is run again, and then its case is left undecided."""

INDIFFERENCE = 0.01
"""The default is replaced only for a gain above this and above the measured noise floor."""

MEMORY_SHARE = 0.8
"""Of the memory that is free when a case is taken up."""


def memory_allowed() -> int:
    """A share of the memory that this machine, or its control group (version 2), has free; else no limit."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # there is no such group, or its limit is "max"
        names = ("memory.max", "memory.current")
        most, used = (int((Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8")) for name in names)
        found.append(max(0, most - used))
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found += [int(kib) * 1024 for kib in re.findall(r"^MemAvailable:\s*(\d+)", text, re.MULTILINE)]
    return int(MEMORY_SHARE * min(found)) if found else 2**62
