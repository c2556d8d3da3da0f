"""The clock of a run and its time limit.

Kernels are timed with the clocks of their devices (``tuning.measure.timing``), not with this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""A monotonic clock in seconds."""


class Watch:
    """Starts with the run. limit_s: seconds after which nothing new is begun; infinite for no limit."""

    def __init__(self, clock: Clock = time.monotonic, limit_s: float = math.inf) -> None:
        self.clock, self.limit_s = clock, limit_s
        self.began = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds until the limit, negative after it."""
        return self.limit_s - self.elapsed

    def over(self, reserve_s: float = 0.0) -> bool:
        """Whether fewer than ``reserve_s`` seconds are left."""
        return self.left <= reserve_s
