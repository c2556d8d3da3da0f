"""The schedule of a run: how many candidates of each case are tried, and how long that takes.

A case has a fixed price (inputs and their float64 reference, the default, the baselines, the race) and a price per try.
Where time is short, what is left after the fixed prices is shared among the cases by the weight of their ops; each case
gets at least ``Budget.hurried`` tries. A run with a limit leaves out the cases that do not fit, the lightest ops first.

Prices come from an earlier journal of the device; without one ``PRICES`` are assumed. The schedule is made anew before
every case, with the times of the cases so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from griffin_kernels.device import Device
from tuning.plan.budget import Budget
from tuning.plan.eta import Prices
from tuning.plan.planner import WEIGHTS, Job, Planned, compiles_itself
from tuning.record.journal_records import Place, Record

PRIOR_S = 30.0
"""Seconds of planned work by which the planned pace counts beside the one seen."""


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


@dataclass(frozen=True)
class Assumed:
    """Seconds on a machine on which nothing has run. start: worker, noise floor, DRAM bandwidth, first compilations.

    case: inputs and float64 reference. candidate: check on two problems, what compiling is waited for, a first timing
    beside ``Budget.seconds``. compiled: what a baseline of torch.compile takes more, which nothing compiles ahead.
    race: of ``Budget.race_seconds``.
    """

    start: float
    case: float
    candidate: float
    compiled: float
    race: float


PRICES: Mapping[str, Assumed] = MappingProxyType(
    {
        # two cores of a cloud machine, default budget: 26 cases and 234 candidates in 3.5 minutes
        "cpu": Assumed(start=15.0, case=1.5, candidate=0.25, compiled=3.0, race=1.0),
        # read from the code and from compiling offline, not measured: kernels are compiled ahead on other cores
        "gpu": Assumed(start=40.0, case=2.0, candidate=0.8, compiled=4.0, race=1.25),
    }
)
"""By the kind of device."""


def assumed(device: Device) -> Assumed:
    return PRICES["cpu" if device.kind == "cpu" else "gpu"]


STUDY_S: Mapping[str, float] = MappingProxyType({"quick": 20.0, "default": 45.0, "thorough": 300.0})
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


def slot(job: Job, device: Device, budget: Budget, earlier: Prices) -> Slot:
    """A case with its prices. earlier: prices of an earlier run."""
    prices = assumed(device)
    baselines = [p.variant for p in job.candidates if p.reason is None and p.variant.baseline]
    told = earlier.at(job.place)
    each = prices.candidate + budget.seconds if told is None else told
    slow = prices.compiled * sum(map(compiles_itself, baselines)) if told is None else 0.0
    most = budget.tries(len(job.competitors))
    return Slot(
        place=job.place,
        fixed_s=prices.case + prices.race * budget.race_seconds + len(baselines) * each + slow,
        each_s=each,
        least=min(budget.hurried, most),
        most=most,
        certain=len(baselines),
        weight=WEIGHTS.get(job.op.name, 1.0),
        known=told is not None,
    )


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
    level = _level(kept, spare)
    return {one.place: one.tries_at(level) for one in kept}


def _level(slots: Sequence[Slot], spare: float) -> float:
    """The highest level that ``spare`` seconds pay for."""

    def price(level: float) -> float:
        return sum((one.tries_at(level) - one.least) * one.each_s for one in slots)

    if price(math.inf) <= spare:
        return math.inf
    low, high = 0.0, float(max(one.most for one in slots))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= spare else (low, middle)
    return low


@dataclass(frozen=True)
class ScheduleRow:
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
        self,
        jobs: Iterable[Job],
        device: Device,
        budget: Budget,
        *,
        limit_s: float = math.inf,
        lanes: int = 1,
        after_s: float = 0.0,
        earlier: Sequence[Record] = (),
    ) -> None:
        """limit_s: seconds that the user gave; else the budget's for this kind of device. earlier: a run before."""
        priced, planned = Prices(earlier), list(jobs)
        self.slots = {one.place: one for one in (slot(job, device, budget, priced) for job in planned)}
        self._compiles = any(compiles_itself(p.variant) for job in planned for p in job.candidates if p.reason is None)
        self.drop = math.isfinite(limit_s)
        self._assumed, self._budget = assumed(device), budget
        self.start_s, self.lanes = self._assumed.start, lanes
        self.after_s = 0.0 if self.drop else after_s
        self.target_s = limit_s if self.drop else 60 * budget.minutes(device.kind)
        self._open = dict(self.slots)
        self._planned_s = self._took_s = 0.0
        self.tries = share(list(self.slots.values()), self._room(self.start_s), self.drop)

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
