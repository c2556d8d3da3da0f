"""The remaining time of a run, estimated from the seconds that candidates of each case take.

A mean over all candidates so far is wrong where cheap ops come first. Every open case therefore has a price: the mean
of its own candidates so far, of the same case in an earlier run, or of its op. Races, new workers and several devices
at once are an overhead factor: the time that has passed over the seconds that candidates account for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuning.record.journal_records import Candidate, End, Record

Place = tuple[str, str]
"""Op and key of a case."""

ENOUGH = 3
"""Candidates of a case, an op or a run from which its mean is believed."""

EARLIER_S = 20.0
"""Seconds of candidates by which the overhead of an earlier run counts beside this run's."""


@dataclass
class _Mean:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    @property
    def value(self) -> float | None:
        return self.seconds / self.count if self.count >= ENOUGH else None


class Prices:
    """Mean seconds of a candidate, by case, by op and over all."""

    def __init__(self) -> None:
        self.cases: defaultdict[Place, _Mean] = defaultdict(_Mean)
        self.ops: defaultdict[str, _Mean] = defaultdict(_Mean)
        self.all = _Mean()

    @classmethod
    def of_run(cls, records: Sequence[Record]) -> Prices:
        """Prices from the candidates of a journal."""
        found = cls()
        for record in records:
            if isinstance(record, Candidate):
                found.add(_place(record), record.seconds_spent)
        return found

    def add(self, place: Place, seconds: float) -> None:
        for mean in (self.cases[place], self.ops[place[0]], self.all):
            mean.add(seconds)

    def at(self, place: Place) -> float | None:
        """The price of a case, or of its op; None where neither is known."""
        found = self.cases[place].value
        return self.ops[place[0]].value if found is None else found


class Estimate:
    """Candidates that a run will still try, and the seconds for them. earlier: the journal of an earlier run."""

    def __init__(self, earlier: Sequence[Record] = ()) -> None:
        self._open: dict[Place, int] = {}
        self._now, self._before = Prices(), Prices.of_run(earlier)
        took = sum(record.seconds for record in earlier if isinstance(record, End))
        spent = self._before.all.seconds
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
        place = _place(record)
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
        spent = self._now.all.seconds
        if self._usual_overhead is not None:
            return (elapsed + EARLIER_S * self._usual_overhead) / (spent + EARLIER_S)
        return elapsed / spent if spent and self._now.all.count >= ENOUGH else None

    def _price(self, place: Place) -> float | None:
        now, before, op = self._now, self._before, place[0]
        pace = self._pace()
        earlier_case, earlier_op = before.cases[place].value, before.ops[op].value
        for price in (
            now.cases[place].value,
            None if earlier_case is None else earlier_case * pace,
            now.ops[op].value,
            None if earlier_op is None else earlier_op * pace,
        ):
            if price is not None:
                return price
        return now.all.value

    def _pace(self) -> float:
        """How much longer candidates take now than in the earlier run, over the cases that both know."""
        both = [p for p, mean in self._now.cases.items() if mean.value and self._before.cases[p].value]
        mine = sum(self._now.cases[p].seconds for p in both)
        theirs = sum((self._before.cases[p].value or 0.0) * self._now.cases[p].count for p in both)
        return mine / theirs if theirs else 1.0


def _place(record: Candidate) -> Place:
    return record.op, record.case.key
