"""Simulates a strategy on a packed journal: which point it would have found, and at what cost."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass

import numpy as np

from griffin_kernels import errors
from tuning.plan.budget import BUDGETS
from tuning.replay.packed import Packed
from tuning.search.strategies import Strategy

SAMPLES = BUDGETS["default"].least
"""Samples that a simulated measurement is the median of, as in a default run at the least."""

FINALISTS = BUDGETS["default"].finalists
"""Points that go into the final race, as in a default run: the best of them counts as found."""


@dataclass(frozen=True)
class Play:
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


def quarter(packed: Packed) -> int:
    """A quarter of a journal's points, rounded up."""
    return math.ceil(len(packed.points) / 4)
