"""The time of a run: one clock that everything in the tuner's own process asks, and when the run is to end.

What a kernel takes is not measured with it: ``tuning.measure.timing`` has the clocks of devices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since any moment, never backwards."""


class Watch:
    """A run that begins now. limit_s: seconds after which nothing new is begun; infinite where there is no end."""

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
