"""The schedule of a run: how many candidates of each case are tried, how long that takes, and the time that is left.

A case has a fixed price (inputs and their float64 reference, the default, the baselines, the race) and a price per try.
Where time is short, what is left after the fixed prices is shared among the cases by the weight of their ops; each case
gets at least ``Budget.hurried`` tries. A run with a limit leaves out the cases that do not fit, the lightest ops first.

Prices come from an earlier journal of the device; without one ``PRICES`` are assumed. The schedule is made anew before
every case, with the times of the cases so far.

The time left is estimated from the seconds that candidates take. A mean over all candidates so far is wrong where cheap
ops come first. Every open case therefore has a price: the mean of its own candidates so far, of the same case in an
earlier run, or of its op. Races, new workers and several devices at once are an overhead factor: the time that has
passed over the seconds that candidates account for.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from griffin_kernels.device import Device
from tuning.plan.budget import ceilings_s
from tuning.plan.planner import WEIGHTS, Job, Options, Planned, compiles_itself
from tuning.record import journal
from tuning.record.journal_records import Candidate, End, Place, Record, place_of

PRIOR_S = 30.0
"""Seconds of planned work by which the planned pace counts beside the one seen."""

ENOUGH = 3
"""Candidates of a case, an op or a run from which its mean is believed."""

EARLIER_S = 20.0
"""Seconds of candidates by which the overhead of an earlier run counts beside this run's."""

Clock = Callable[[], float]
"""A monotonic clock in seconds, for what the tuner itself does; kernels are timed by ``tuning.measure.timing``."""


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


class Prices:
    """Mean seconds of a candidate: of a case (by its place), of an op (by its name), of all (by an empty name)."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """records: a journal, with the candidates of which to begin."""
        self.counts: Counter[Place | str] = Counter()
        self.seconds: defaultdict[Place | str, float] = defaultdict(float)
        for record in records:
            if isinstance(record, Candidate):
                self.add(place_of(record), record.seconds_spent)

    def add(self, place: Place, seconds: float) -> None:
        for what in (place, place[0], ""):
            self.counts[what] += 1
            self.seconds[what] += seconds

    def mean(self, *what: Place | str) -> float | None:
        """Of the first of which ``ENOUGH`` candidates are known; None without one."""
        return next((self.seconds[each] / self.counts[each] for each in what if self.counts[each] >= ENOUGH), None)


@dataclass(frozen=True)
class Assumed:
    """Seconds on a machine on which nothing has run. start: worker, noise floor, first compilations; sampling the
    ceilings, ``budget.ceilings_s``, comes on top.

    case: inputs and float64 reference. candidate: check on two problems, what compiling is waited for, a first timing
    beside ``Budget.seconds``. compiled: what a baseline of torch.compile takes more, which nothing compiles ahead.
    race: of ``Budget.race_seconds``.
    """

    start: float
    case: float
    candidate: float
    compiled: float
    race: float


PRICES: Mapping[str, Assumed] = {
    # two cores of a cloud machine, default budget: 26 cases and 234 candidates in 3.5 minutes
    "cpu": Assumed(start=15.0, case=1.5, candidate=0.25, compiled=3.0, race=1.0),
    # read from the code and from compiling offline, not measured: kernels are compiled ahead on other cores
    "gpu": Assumed(start=40.0, case=2.0, candidate=0.8, compiled=4.0, race=1.25),
}
"""By the kind of device."""


STUDY_S: Mapping[str, float] = {"quick": 20.0, "default": 45.0, "thorough": 300.0}
"""Seconds of the study that follows a whole run, by budget: what ``tuning.run.STUDY_TIMING`` measures and more."""


@dataclass(frozen=True)
class Slot:
    """A case in the plan. fixed_s: its price without a search. each_s: of a try. least, most: tries.

    certain: candidates that are tried whatever the time. weight: of its op. known: whether an earlier run tells.
    """

    place: Place
    fixed_s: float
    each_s: float
    least: int
    most: int
    certain: int
    weight: float
    known: bool

    def seconds(self, tries: int) -> float:
        return self.fixed_s + tries * self.each_s

    def tries_at(self, level: float) -> int:
        """Tries at a level: so many above the least for each unit of weight."""
        return self.most if math.isinf(level) else min(self.most, self.least + int(level * self.weight))


def share(slots: Sequence[Slot], seconds: float, drop: bool) -> dict[Place, int]:
    """Tries of each case within ``seconds``; a case that is left out has none.

    drop: leave out cases that do not fit with their least tries, later ones first; otherwise all are kept, and the
    sum may be above ``seconds``.
    """
    kept, spare = [], seconds
    for one in slots:
        if drop and one.seconds(one.least) > spare:
            continue
        kept.append(one)
        spare -= one.seconds(one.least)
    tries = {one.place: one.least for one in kept}
    if spare <= 0:
        return tries

    def price(level: float) -> float:
        return sum((one.tries_at(level) - one.least) * one.each_s for one in kept)

    # the highest level that the spare seconds pay for
    low, high = 0.0, float(max((one.most for one in kept), default=0))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= spare else (low, middle)
    level = math.inf if price(math.inf) <= spare else low
    return {one.place: one.tries_at(level) for one in kept}


class ScheduleRow(NamedTuple):
    """What is planned for an op: cases that are tried, candidates that run, seconds."""

    op: str
    cases: int
    candidates: int
    seconds: float


class Schedule:
    """The schedule of a run, made anew before every case.

    target_s: seconds that the run is planned for; infinite where it takes what it takes. drop: whether it leaves cases
    out to keep to them. lanes: devices that share the cases. after_s: what follows the last case.
    """

    def __init__(
        self, jobs: Sequence[Job], device: Device, options: Options, earlier: Sequence[Record] = (), lanes: int = 1
    ) -> None:
        """earlier: the journal of an earlier run; one of another device is not used."""
        run = journal.first_run(earlier)
        priced = Prices(earlier if run is not None and run.device.validity == device.validity() else ())
        self._assumed, self._budget = PRICES["cpu" if device.kind == "cpu" else "gpu"], options.limits()
        self.slots = {job.place: self._slot(job, priced) for job in jobs}
        self._compiles = any(compiles_itself(p.variant) for job in jobs for p in job.candidates if p.reason is None)
        self.drop = options.minutes > 0
        self.start_s, self.lanes = self._assumed.start + ceilings_s(options.budget, options.minutes), lanes
        self.after_s = STUDY_S[options.budget] if options.whole and not self.drop else 0.0
        minutes = math.inf if device.kind == "cpu" else self._budget.gpu_minutes
        self.target_s = 60 * (options.minutes or minutes)
        self._open = dict(self.slots)
        self._planned_s = self._took_s = 0.0
        self.tries = share(list(self.slots.values()), self._room(self.start_s), self.drop)

    def _slot(self, job: Job, earlier: Prices) -> Slot:
        prices, budget = self._assumed, self._budget
        baselines = [p.variant for p in job.candidates if p.reason is None and p.variant.baseline]
        told = earlier.mean(job.place, job.op.name)
        each = prices.candidate + budget.seconds if told is None else told
        slow = prices.compiled * sum(map(compiles_itself, baselines)) if told is None else 0.0
        fixed_s = prices.case + prices.race * budget.race_seconds + len(baselines) * each + slow
        most = budget.tries(len(job.competitors))
        least, weight = min(budget.hurried, most), WEIGHTS.get(job.op.name, 1.0)
        return Slot(job.place, fixed_s, each, least, most, len(baselines), weight, told is not None)

    def _room(self, elapsed_s: float) -> float:
        """Seconds of cases, at the planned pace, that fit after ``elapsed_s`` seconds."""
        return (self.target_s - self.after_s - elapsed_s) * self.lanes / self.pace

    @property
    def pace(self) -> float:
        """Seconds that a planned second takes."""
        return (self._took_s + PRIOR_S) / (self._planned_s + PRIOR_S)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run as it is planned now."""
        return self.start_s + self.after_s + sum(row.seconds for row in self.rows())

    @property
    def left_out(self) -> int:
        """Cases for which there is no time."""
        return len(self.slots) - len(self.tries)

    @property
    def candidates(self) -> int:
        return sum(row.candidates for row in self.rows())

    def rows(self) -> list[ScheduleRow]:
        """The plan by op, in the order of work."""
        found = []
        for op in dict.fromkeys(op for op, _ in self.slots):
            mine = [self.slots[place] for place in self.tries if place[0] == op]
            tried = [(one, self.tries[one.place]) for one in mine]
            seconds = sum(one.seconds(count) for one, count in tried) * self.pace / self.lanes
            found.append(ScheduleRow(op, len(mine), sum(one.certain + count for one, count in tried), seconds))
        return found

    def assumptions(self) -> str:
        """A sentence on what the estimate assumes."""
        prices, budget = self._assumed, self._budget
        known = sum(one.known for one in self.slots.values())
        if known == len(self.slots):
            return "priced by the candidates of the run before"
        compiled = f"{prices.compiled:g} s more for one of torch.compile, " if self._compiles else ""
        case_s = prices.case + prices.race * budget.race_seconds
        rest = (
            f"assumed {prices.candidate + budget.seconds:.2g} s for a candidate, {compiled}{case_s:.2g} s for the "
            f"inputs and race of a case, {self.start_s:g} s to begin"
        )
        return rest if not known else f"{known} of {len(self.slots)} cases priced by the run before, the others {rest}"

    def seconds_of(self, place: Place, planned: Planned) -> float:
        """What a candidate takes, at the pace of the run."""
        slow = self._assumed.compiled if compiles_itself(planned.variant) else 0.0
        return self.pace * (self.slots[place].each_s + slow)

    def begin(self, place: Place, watch: Watch) -> int | None:
        """Tries of a case that begins now; None where there is no time for it."""
        rest = share(list(self._open.values()), self._room(watch.elapsed), self.drop)
        self.tries = {p: n for p, n in self.tries.items() if p not in self._open} | rest
        self._open.pop(place)
        return self.tries.get(place)

    def done(self, place: Place, tries: int, seconds: float) -> None:
        """Take note that a case was decided after so many tries and seconds."""
        self._planned_s += self.slots[place].seconds(tries)
        self._took_s += seconds

    def skip(self, place: Place) -> None:
        """Take a case out of the schedule."""
        self._open.pop(place, None)


class Estimate:
    """Candidates that a run will still try, and the seconds for them. earlier: the journal of an earlier run."""

    def __init__(self, earlier: Sequence[Record] = ()) -> None:
        self._open: dict[Place, int] = {}
        self._now, self._before = Prices(), Prices(earlier)
        took, spent = sum(record.seconds for record in earlier if isinstance(record, End)), self._before.seconds[""]
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
        spent, usual = self._now.seconds[""], self._usual_overhead
        if not self.coming:
            return 0.0
        if usual is None and self._now.mean("") in (None, 0.0):
            return None
        # seconds of the run per second of its candidates
        overhead = elapsed / spent if usual is None else (elapsed + EARLIER_S * usual) / (spent + EARLIER_S)
        prices = [(self._price(place), count) for place, count in self._open.items() if count]
        known = [(price, count) for price, count in prices if price is not None]
        if not known:
            return None
        return self.coming * overhead * sum(price * n for price, n in known) / sum(n for _, n in known)

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
        for what, seconds in list(self._now.seconds.items()):
            before = self._before.mean(what) if isinstance(what, tuple) else None
            if before and self._now.mean(what):
                mine, theirs = mine + seconds, theirs + before * self._now.counts[what]
        return mine / theirs if theirs else 1.0
