"""The remaining time of a run, estimated from the seconds that candidates of each case take.

A mean over all candidates so far is wrong where cheap ops come first. Every open case therefore has a price: the mean
of its own candidates so far, of the same case in an earlier run, or of its op. Races, new workers and several devices
at once are an overhead factor: the time that has passed over the seconds that candidates account for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuning.record.journal_records import Candidate, End, Place, Record, place_of

ENOUGH = 3
"""Candidates of a case, an op or a run from which its mean is believed."""

EARLIER_S = 20.0
"""Seconds of candidates by which the overhead of an earlier run counts beside this run's."""


@dataclass
class _Total:
    count: int = 0
    seconds: float = 0.0


class Prices:
    """Mean seconds of a candidate: of a case (by its place), of an op (by its name), of all (by an empty name)."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """records: a journal, with the candidates of which to begin."""
        self.totals: defaultdict[Place | str, _Total] = defaultdict(_Total)
        for record in records:
            if isinstance(record, Candidate):
                self.add(place_of(record), record.seconds_spent)

    def add(self, place: Place, seconds: float) -> None:
        for total in (self.totals[place], self.totals[place[0]], self.totals[""]):
            total.count += 1
            total.seconds += seconds

    def mean(self, what: Place | str) -> float | None:
        """None where fewer than ``ENOUGH`` candidates are known."""
        total = self.totals[what]
        return total.seconds / total.count if total.count >= ENOUGH else None

    def at(self, place: Place) -> float | None:
        """The price of a case, or of its op; None where neither is known."""
        found = self.mean(place)
        return self.mean(place[0]) if found is None else found


class Estimate:
    """Candidates that a run will still try, and the seconds for them. earlier: the journal of an earlier run."""

    def __init__(self, earlier: Sequence[Record] = ()) -> None:
        self._open: dict[Place, int] = {}
        self._now, self._before = Prices(), Prices(earlier)
        took = sum(record.seconds for record in earlier if isinstance(record, End))
        spent = self._before.totals[""].seconds
        self._usual_overhead = took / spent if took and spent else None

    @property
    def coming(self) -> int:
        """Candidates that will still be tried, at most."""
        return sum(self._open.values())

    def expect(self, coming: Mapping[Place, int]) -> None:
        """Set the most candidates that will come of these cases; other cases keep theirs."""
        self._open |= coming

    def candidate(self, record: Candidate) -> None:
        """A candidate is finished. One that was skipped takes no other's place."""
        place = place_of(record)
        self._now.add(place, record.seconds_spent)
        if record.status != "skipped" and place in self._open:
            self._open[place] = max(0, self._open[place] - 1)

    def closed(self, place: Place) -> None:
        """Nothing more comes for a case."""
        self._open.pop(place, None)

    def left(self, elapsed: float) -> float | None:
        """Seconds for what is to come, after ``elapsed`` seconds of work; None before anything is known."""
        candidates = self.coming
        if not candidates:
            return 0.0
        overhead = self._overhead(elapsed)
        prices = {place: self._price(place) for place, count in self._open.items() if count}
        known = {place: price for place, price in prices.items() if price is not None}
        if overhead is None or not known:
            return None
        weights = {place: self._open[place] for place in known}
        return candidates * overhead * sum(known[p] * n for p, n in weights.items()) / sum(weights.values())

    def _overhead(self, elapsed: float) -> float | None:
        """Seconds of the run per second of its candidates."""
        all_ = self._now.totals[""]
        if self._usual_overhead is not None:
            return (elapsed + EARLIER_S * self._usual_overhead) / (all_.seconds + EARLIER_S)
        return elapsed / all_.seconds if all_.seconds and all_.count >= ENOUGH else None

    def _price(self, place: Place) -> float | None:
        """The mean of the case, else of its op, now or at the pace of the earlier run; else of all."""
        for what in (place, place[0]):
            if (now := self._now.mean(what)) is not None:
                return now
            if (before := self._before.mean(what)) is not None:
                return before * self._pace()
        return self._now.mean("")

    def _pace(self) -> float:
        """How much longer candidates take now than in the earlier run, over the cases that both know."""
        mine = theirs = 0.0
        for what, total in list(self._now.totals.items()):
            before = self._before.mean(what) if isinstance(what, tuple) else None
            if before and self._now.mean(what):
                mine, theirs = mine + total.seconds, theirs + before * total.count
        return mine / theirs if theirs else 1.0
