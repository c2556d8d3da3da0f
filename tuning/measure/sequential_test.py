"""What a race proves: which finalist beats which, when more rounds are not worth their time, who wins and who ties.

Finalists are compared by their ratios within rounds, through Wilcoxon's signed-rank test. The order within a round is
random, so of two equal kernels each is as likely to be the slower one by as much, in any round, whatever drifts, spikes
or repeats: the test is exact. Its level is shared out (Bonferroni) among all rivals, and among all looks at the growing
race by the square root of their rounds, because what shows early needs little of it (in simulated races on recorded
noise that ends clear ones sooner than shares by rounds, and finds as much). So looking often costs power and never
honesty: of races between equals at most ``TAIL`` end with a difference, even before the margin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from roofline import stats
from tuning.plan.budget import INDIFFERENCE

TAIL = 0.05
"""Probability that a race tells equals apart."""

INTERIM_ROUNDS = (11, 21, 41, 81, 161, 321, 641, 1281)
"""Rounds after which a race is looked at."""

LEAST = 9
"""Rounds at least, unless the budget has fewer: with less hardly any difference, however large, can be proven."""

ENOUGH = 0.02
"""A rival that is certainly less than this ahead is not worth further rounds."""

PROMISING = 0.03
"""Where the fastest seems so far ahead of what it would replace, an unclear race goes on."""

PATIENCE = 4
"""For so many times its time at the most: few races need it, and those decide what is published."""


@dataclass(frozen=True)
class InterimLooks:
    """When to look at a race. after: rounds. fair: rounds that there is time for; what is promising gets the rest."""

    after: tuple[int, ...]
    fair: int

    @classmethod
    def plan(cls, most: int, affordable: int) -> InterimLooks:
        """most: rounds the budget has. affordable: those there is time for."""
        fair = min(most, max(LEAST, affordable))
        early = [n for n in INTERIM_ROUNDS if 4 * n <= 3 * fair]
        after, last = [*early, fair], min(most, PATIENCE * fair)
        while after[-1] < last:
            after.append(min(last, 2 * after[-1]))
        return cls(tuple(after), fair)

    def tail(self, count: int) -> float:
        """The share of ``TAIL`` that belongs to the look after ``count`` rounds, or to the next one."""
        return TAIL * math.sqrt(next(n for n in self.after if n >= count)) / sum(map(math.sqrt, self.after))


@dataclass(frozen=True)
class PairedComparisons:
    """Comparisons of the columns of a race. columns: samples of each finalist, round by round.

    own: places of finalists that may win. noise: the floor of the race. tail: probability of an error.
    """

    columns: tuple[tuple[float, ...], ...]
    own: tuple[int, ...]
    noise: float
    tail: float

    @functools.cached_property
    def _compared(self) -> dict[tuple[int, int], tuple[float, float, float]]:
        return {}

    @property
    def margin(self) -> float:
        """How far ahead one must certainly be, as a share."""
        return max(INDIFFERENCE, self.noise)

    def compare(self, slow: int, fast: int) -> tuple[float, float, float]:
        """(least, likely, most) that ``fast`` is faster, as a share; -1 and infinity after too few rounds."""
        if (slow, fast) not in self._compared:
            pairs = zip(self.columns[slow], self.columns[fast], strict=True)
            tail = self.tail / max(1, len(self.own) - 1)
            logs = stats.signed_rank_interval([math.log(s / f) for s, f in pairs], tail)
            self._compared[slow, fast] = tuple(math.expm1(x) for x in logs)  # type: ignore[assignment]
        return self._compared[slow, fast]

    def gain(self, slow: int, fast: int) -> float:
        """How much faster ``fast`` is, as a share."""
        return self.compare(slow, fast)[1]

    def beats(self, fast: int, slow: int) -> bool:
        """Whether ``fast`` is certainly faster, by more than the margin."""
        return self.compare(slow, fast)[0] > self.margin

    @functools.cached_property
    def fastest(self) -> int:
        """By the ratio to the first of our own, round by round."""
        return max(self.own, key=lambda i: self.gain(self.own[0], i))

    def clear(self) -> bool:
        """Whether every one of our own is certainly behind the fastest, or certainly as good as level with it."""
        best = self.fastest
        return all(self.beats(best, i) or self.compare(i, best)[2] <= ENOUGH for i in self.own if i != best)

    def winner(self, champion: int | None, preference: Sequence[int], incumbent: int | None = None) -> int:
        """Who wins. champion: keeps its place unless the fastest certainly beats it.

        Where it is beaten, the incumbent has the next right, and then the first by preference of those within the
        indifference zone of the fastest, provided that they beat the champion too.
        """
        best = self.fastest
        if champion is not None and not self.beats(best, champion):
            return champion
        able = [i for i in self.own if champion is None or i == best or self.beats(i, champion)]
        if incumbent is not None and incumbent in able and not self.beats(best, incumbent):
            return incumbent
        level = [i for i in able if self.gain(i, best) <= INDIFFERENCE]
        return min(level, key=preference.index)

    def ties(self, winner: int) -> list[int]:
        """Our own finalists that the winner does not certainly beat."""
        return [i for i in self.own if i != winner and not self.beats(winner, i)]


def promising(comparisons: PairedComparisons, champion: int | None) -> bool:
    """Whether further rounds of an unclear race may yet dethrone the champion, or there is no champion."""
    return champion is None or comparisons.gain(champion, comparisons.fastest) > PROMISING
