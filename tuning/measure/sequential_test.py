"""A group-sequential test of a race: which finalist beats which, when to stop, who wins and who ties.

Finalists are compared by their ratios within rounds, with Wilcoxon's signed-rank test. The order within a round is
random. Of two equal kernels each is therefore as likely to be the slower one by the same amount, in any round, and the
test is exact under drift and spikes. Its level is divided (Bonferroni) among all rivals, and among all interim looks in
proportion to the square root of their rounds. In simulated races on recorded noise these shares end clear races sooner
than shares by rounds, and detect as much. Interim looks cost power, not validity: of races between equals at most
``TAIL`` end with a difference, even before the margin.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from roofline import stats
from tuning.plan.budget import INDIFFERENCE

TAIL = 0.05
"""Probability that a race of equal kernels ends with a difference."""

INTERIM_ROUNDS = (11, 21, 41, 81, 161, 321, 641, 1281)
"""Rounds after which a race is tested."""

LEAST = 9
"""Rounds at least, unless the budget has fewer: with less hardly any difference, however large, can be proven."""

ENOUGH = 0.02
"""A rival that is certainly less than this ahead is not worth further rounds."""

PROMISING = 0.03
"""An unclear race goes on where the fastest seems to be ahead of the champion by this share."""

PATIENCE = 4
"""A promising race may take this many times its time. Few races need it, and those decide what is published."""


@dataclass(frozen=True)
class InterimLooks:
    """After how many rounds a race is tested. fair: rounds that there is time for; a promising race goes on longer."""

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
    """Comparisons of the finalists of a race in pairs. columns: samples of each finalist, round by round.

    own: indices of finalists that may win, which baselines may not. noise: the noise floor of the race. tail:
    probability of an error. places: of the finalists in the order of trial. champion: the finalist that wins unless
    beaten: the default, without one the incumbent. incumbent: the case's winner so far. None where not in the race.
    """

    columns: tuple[tuple[float, ...], ...]
    own: tuple[int, ...]
    noise: float
    tail: float
    places: tuple[int, ...] = ()
    champion: int | None = None
    incumbent: int | None = None
    _compared: dict[tuple[int, int], tuple[float, float, float]] = field(default_factory=dict, init=False)

    @property
    def margin(self) -> float:
        """The proven gain, as a share, that replaces the champion."""
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
        """The fastest of our own finalists, by the ratios to the first of them within rounds."""
        return max(self.own, key=lambda i: self.gain(self.own[0], i))

    def clear(self) -> bool:
        """Whether every one of our own is certainly behind the fastest, or certainly as good as level with it."""
        best = self.fastest
        return all(self.beats(best, i) or self.compare(i, best)[2] <= ENOUGH for i in self.own if i != best)

    def winner(self) -> int:
        """The finalist that wins: the champion, unless the fastest certainly beats it.

        A beaten champion is replaced by the incumbent, unless the fastest certainly beats that too, or else by the
        first tried of those within the indifference zone of the fastest. Whoever replaces the champion must certainly
        beat it.
        """
        best = self.fastest
        if self.champion is not None and not self.beats(best, self.champion):
            return self.champion
        able = [i for i in self.own if self.champion is None or i == best or self.beats(i, self.champion)]
        if self.incumbent is not None and self.incumbent in able and not self.beats(best, self.incumbent):
            return self.incumbent
        return min((i for i in able if self.gain(i, best) <= INDIFFERENCE), key=lambda i: self.places[i])

    def ties(self, winner: int) -> list[int]:
        """Our own finalists that the winner does not certainly beat."""
        return [i for i in self.own if i != winner and not self.beats(winner, i)]

    def promising(self) -> bool:
        """Whether further rounds of an unclear race may yet dethrone the champion, or there is no champion."""
        return self.champion is None or self.gain(self.champion, self.fastest) > PROMISING
