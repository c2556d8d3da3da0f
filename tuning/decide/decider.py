"""Decides one case: candidates tried in the order that search asks for, the best raced, the outcome recorded.

A candidate that fails, crashes or hangs is recorded as such, and the run goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from griffin_kernels import registry
from griffin_kernels.contract import config_dict, config_key
from griffin_kernels.device import Device
from griffin_kernels.records import Entry
from roofline import stats
from tuning.decide import verdict
from tuning.decide.case_search import CaseSearch
from tuning.decide.history import History
from tuning.decide.listener import Listener
from tuning.measure.finalist import Finalist
from tuning.measure.sequential_test import PATIENCE
from tuning.plan.budget import HOPELESS_ELSEWHERE, HOPELESS_FACTOR, UNQUIET, Budget
from tuning.plan.planner import Job, Planned
from tuning.plan.schedule import Schedule, Watch
from tuning.record import journal
from tuning.record.journal_records import Candidate, Place, Race, Record, Result, Undecided
from tuning.workers.compile_pool import CompilePool, Upcoming
from tuning.workers.executor import InProcessExecutor
from tuning.workers.messages import Broken, Load, RunRace, Tried, Try
from tuning.workers.process import Death, IsolatedExecutor

Done = list[tuple[Planned, Candidate]]


@dataclass(frozen=True)
class DeviceLane:
    """One device that works through cases. name: as ``device.detect`` takes it; empty where there is only one."""

    name: str
    executor: InProcessExecutor | IsolatedExecutor


class Hopeless(NamedTuple):
    """A candidate that is skipped: why, and the seconds that search takes it for, as its variant's others took."""

    why: str
    seconds: float


class Aborted(Exception):
    """A case that cannot be decided, with the sentence that says why. noise: the floor of its races, if that is why."""

    def __init__(self, why: str, noise: float | None = None) -> None:
        super().__init__(why)
        self.noise = noise


class Late(Exception):
    """There is no time left to race a case."""


@dataclass
class Decider:
    """Decides the cases of a run and holds what they share. Lanes call ``decide`` from threads of their own.

    incumbents: entries of this device as published before. strategy: by name; empty for the one that suits it.
    watch, schedule: the time of the run, and how many tries each case gets.
    jobs: all cases of the run. repeat: the command that tunes a case again. decided, undecided: cases by how
    they ended so far; for the undecided nothing can be published.
    """

    device: Device
    budget: Budget
    history: History
    log: journal.Journal
    listener: Listener
    schedule: Schedule
    dram_bytes_per_s: float = 0.0
    incumbents: registry.Registry | None = None
    strategy: str = ""
    compile_pool: CompilePool | None = None
    watch: Watch = field(default_factory=Watch)
    jobs: Mapping[Place, Job] = field(default_factory=dict)
    repeat: Callable[[Job], str] = lambda job: "griffin tune"
    decided: dict[Place, Result] = field(default_factory=dict)
    undecided: dict[Place, Undecided] = field(default_factory=dict)
    behind: dict[tuple[str, tuple[str, ...]], tuple[float, str]] = field(default_factory=dict)
    searches: dict[Place, CaseSearch] = field(default_factory=dict)
    begun: set[Place] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def known(self, job: Job, planned: Planned) -> Candidate | None:
        """The journal's record of a candidate, if it is of the source as it is now."""
        record = self.history.candidates.get(planned.key(job.case, self.device))
        return record if record is not None and record.source_hash == planned.variant.source_hash else None

    def coming(self, job: Job) -> int:
        """How many candidates of a case will be tried that are not in the journal, at most."""
        if self.tries(job) == 0 or self.history.decided(job) is not None:
            return 0
        certain = sum(self.known(job, p) is None for p in job.candidates if p.reason is not None or p.variant.baseline)
        searched = [record for p in job.competitors if (record := self.known(job, p)) is not None]
        return certain + max(0, self.tries(job) - sum(record.status != "skipped" for record in searched))

    def planned(self, job: Job) -> int:
        """How many candidates of a case will be in the journal, at most."""
        known = {record.key for record in self.history.tried(job)}
        if not self.tries(job):
            return len(known)
        searched = {p.key(job.case, self.device) for p in job.competitors}
        certain = {p.key(job.case, self.device) for p in job.candidates} - searched
        return len(certain | (known - searched)) + max(self.tries(job), len(known & searched))

    def tries(self, job: Job) -> int:
        """How many candidates of a case search may try; 0 where there is no time for the case."""
        return self.schedule.tries.get(job.place, 0)

    @property
    def reserve_s(self) -> float:
        """Longest time of a race in seconds, which is kept free for it."""
        return PATIENCE * self.budget.race_seconds

    def search(self, job: Job) -> CaseSearch:
        """The search of a job; its predictions are made once."""
        if job.place not in self.searches:
            near = _earlier(self, job)[1]
            self.searches.setdefault(job.place, CaseSearch(job, self.device, self.budget, self.strategy, near))
        return self.searches[job.place]

    def openings(self, jobs: Sequence[Job]) -> Upcoming:
        """First candidates of the jobs that have not begun, for the compile pool."""
        for job in jobs:
            if job.place in self.begun:
                continue
            for planned in self.search(job).opening():
                if job.place in self.begun:
                    break  # its lane now says itself what comes next
                if self.known(job, planned) is None:
                    yield job.case, planned

    def blank(self, job: Job, planned: Planned) -> Candidate:
        """The record of a candidate that was planned and not tried."""
        return Candidate(
            key=planned.key(job.case, self.device),
            op=job.op.name,
            variant=planned.variant.name,
            case=job.case,
            config=config_dict(planned.config),
            baseline=planned.variant.baseline,
            is_default=planned is job.default,
            status="rejected",
            problem=planned.reason,
            source_hash=planned.variant.source_hash,
        )

    def give_up(self, job: Job, planned: Planned, death: Death) -> None:
        """Record a candidate whose process died in precompilation. It is not tried again."""
        record = self.failed(self.blank(job, planned), "compile", death)
        self.history.candidates[record.key] = record

    def failed(self, record: Candidate, stage: str, why: Death | Broken) -> Candidate:
        """Record that a candidate failed, and note it."""
        record = msgspec.structs.replace(record, status=why.status, stage=stage, problem=why.problem)
        with self.lock:
            self.append(record)
            self.listener.note(f"  {record.status}: {record.key}: {record.problem}")
        return record

    def append(self, record: Record) -> None:
        """Write to the journal; lanes take turns."""
        with self.lock:
            self.log.append(record)

    def decide(self, job: Job, lane: DeviceLane, entries: Sequence[Entry]) -> Result | None:
        """Decide a case and record it; None where no candidate can be published, or there is no time for the case.

        entries: decisions of this run so far, for variants that call other ops.
        """
        with self.lock:
            self.begun.add(job.place)
            if (earlier := self.history.decided(job)) is not None:
                return self._again(job, earlier)
            allowed = self._begin(job)
            if allowed is None:
                return None
            self.listener.job(job.op.name, job.case.key, lane=lane.name)
        began = self.watch.clock()
        self.search(job).allow(allowed)
        case = _Case(self, job, lane, entries)
        try:
            case.try_candidates()
            result = case.race_and_decide()
        except Late:
            with self.lock:
                self.listener.closed(*job.place)
            return None
        except Aborted as reason:
            with self.lock:
                why, command = str(reason), self.repeat(job)
                left = Undecided(op=job.op.name, case=job.case, why=why, command=command, noise_floor=reason.noise)
                self.append(left)
                self.undecided[job.place] = left
                self.listener.undecided(left, lane=lane.name)
            return None
        with self.lock:
            # first: what the journal has, an interrupt must not keep from the registry
            self.decided[job.place] = result
            self.append(result)
            if not case.resumed:
                self.schedule.done(job.place, case.tried, self.watch.clock() - began)
            self.listener.result(result, lane=lane.name)
        return result

    def _again(self, job: Job, result: Result) -> Result:
        """Take over the decision of an earlier run, and tell later cases which variants were far behind in it."""
        best = min((stats.median(r.samples_s) for r in self.history.tried(job) if r.status == "ok"), default=None)
        for record in self.history.tried(job):
            self.fell_behind(job, record, best)
        self.schedule.skip(job.place)
        self.decided[job.place] = result
        self.listener.closed(*job.place)
        return result

    def fell_behind(self, job: Job, record: Candidate, best_s: float | None) -> None:
        """Remember how far the first configuration of a variant was behind the best."""
        if record.samples_s and best_s is not None:
            behind = (stats.median(record.samples_s) / best_s, job.case.key)
            with self.lock:
                self.behind.setdefault((f"{record.op}/{record.variant}", job.case.flags), behind)

    def _begin(self, job: Job) -> int | None:
        """How many tries a case that begins now gets; None where it has no time. The schedule is made anew."""
        before = dict(self.schedule.tries)
        allowed = None if self.watch.over(self.reserve_s) else self.schedule.begin(job.place, self.watch)
        if allowed is None:
            self.schedule.skip(job.place)
            self.listener.closed(*job.place)
            return None
        now = self.schedule.tries
        changed = [place for place in self.jobs if before.get(place) != now.get(place)]
        self.listener.expect({place: self.coming(self.jobs[place]) for place in changed})
        return allowed


class _Case:
    """The work on one case. resumed: an earlier run tried some candidates. tried: points that search has tried."""

    def __init__(self, run: Decider, job: Job, lane: DeviceLane, entries: Sequence[Entry]) -> None:
        self.run, self.job, self.lane, self.entries = run, job, lane, list(entries)
        self.resumed = bool(run.history.tried(job))
        self.done: Done = []
        self.tried = 0
        self._loaded = False
        self.best_s: float | None = None
        self.known_entry = _earlier(run, job)[0]
        self.search = run.search(job)
        self.incumbent = next((p for p in self.search.points if _is(p, self.known_entry)), None)

    def try_candidates(self) -> None:
        """Try candidates, in this order: what cannot run, the default, baselines, then search's.

        Search ends when the time is up. Raises Late where that is before the default and the baselines are tried.
        """
        search = self.search
        for planned in self.job.candidates:
            if planned.reason is not None:
                self._take(planned)
        self._expect(search.opening())
        seen: dict[int, float | None] = {}
        for planned in search.certain:
            if self._late(planned):
                raise Late
            record = self._take(planned)
            if not planned.variant.baseline:
                seen[search.points.index(planned)] = _figure(record)
        if not self.run.budget.searches:  # what an earlier search found competes as it did
            for at, planned in enumerate(search.points):
                if at not in seen and self.run.known(self.job, planned) is not None:
                    seen[at] = _figure(self._take(planned))
        self.tried = len(seen)
        while (index := search.next(seen, self.tried)) is not None:
            planned = search.points[index]
            if self._late(planned):
                break
            hopeless = self._hopeless(planned)
            self._expect(search.coming(seen, self.tried, (index,)))
            record = self._take(planned, hopeless)
            if hopeless is not None and record.status == "skipped":
                # not counted as tried, but search is told how far behind its like was
                seen[index] = hopeless.seconds
            else:
                seen[index], self.tried = _figure(record), self.tried + 1
        self._expect(iter(()))

    def _late(self, planned: Planned) -> bool:
        """Whether the time that is left is needed for the race, so that a candidate may not be tried any more."""
        if self.run.known(self.job, planned) is not None:
            return False
        takes = self.run.schedule.seconds_of(self.job.place, planned)
        return self.run.watch.over(self.run.reserve_s + takes)

    def _expect(self, coming: Iterator[Planned]) -> None:
        """Have the candidates that will probably be tried next compiled, while the present one is timed."""

        def worthwhile(planned: Planned) -> bool:
            return self.run.known(self.job, planned) is None and self._hopeless(planned) is None

        if self.run.compile_pool is not None:
            self.run.compile_pool.prefetch(self.lane.name, ((self.job.case, p) for p in coming if worthwhile(p)))

    def _take(self, planned: Planned, hopeless: Hopeless | None = None) -> Candidate:
        """The record of a candidate, from the journal or made now."""
        record = self.run.known(self.job, planned)
        if record is None:
            with self.run.lock:
                self.run.listener.trying(planned.variant.name, config_key(planned.config), lane=self.lane.name)
            blank = self.run.blank(self.job, planned)
            if hopeless is not None:
                record = msgspec.structs.replace(blank, status="skipped", problem=hopeless.why)
            else:
                record = blank if planned.reason is not None else self._try(planned, blank)
            with self.run.lock:
                self.run.append(record)
                self.run.listener.candidate(record, lane=self.lane.name)
        self.done.append((planned, record))
        if record.status == "ok":
            figure = stats.median(record.samples_s)
            self.best_s = figure if self.best_s is None else min(self.best_s, figure)
        self.run.fell_behind(self.job, record, self.best_s)
        return record

    def _try(self, planned: Planned, blank: Candidate) -> Candidate:
        began = self.run.watch.clock()
        pool = self.run.compile_pool
        answer: Tried | Broken | None = None if pool is None else pool.problem(self.job.case, planned)
        if answer is None:
            self._load()
            patient = blank.is_default or blank.baseline or planned is self.incumbent
            request = Try(planned.variant.key, blank.config, self.run.budget, self.best_s, patient)
            answer = self.lane.executor.attempt(request)
            if isinstance(answer, Broken):
                raise Aborted(f"its inputs cannot be made: {answer.problem}")
        found = {name: getattr(answer, name) for name in ("status", "stage", "problem", "errors", "samples_s")}
        return msgspec.structs.replace(blank, **found, seconds_spent=self.run.watch.clock() - began)

    def _load(self) -> None:
        if not self._loaded:
            self.lane.executor.load(Load(self.job.op.name, self.job.case, self.entries))
            self._loaded = True

    def _hopeless(self, planned: Planned) -> Hopeless | None:
        """Why a candidate is not worth trying: its variant was far behind here, or very far at another case."""
        if self.best_s is None or self.run.budget.thorough or planned is self.incumbent:
            return None
        name = planned.variant.name
        first = next((r for p, r in self.done if p.variant is planned.variant and r.samples_s), None)
        if first is not None:
            behind = stats.median(first.samples_s) / self.best_s
            text = f"{name} was {behind:.0f} times slower with another configuration"
            return None if behind <= HOPELESS_FACTOR else Hopeless(text, behind * self.best_s)
        behind, where = self.run.behind.get((planned.variant.key, self.job.case.flags), (0.0, ""))
        text = f"{name} was {behind:.0f} times slower than the best at {where}"
        return None if behind <= HOPELESS_ELSEWHERE else Hopeless(text, behind * self.best_s)

    def race_and_decide(self) -> Result:
        """Race the best and decide. A race that is too noisy, or surprises, is run again once."""
        job, run = self.job, self.run
        while True:
            field = verdict.finalists(self.done, job.default, run.budget.finalists, self.incumbent)
            if all(f.record.baseline for f in field):
                raise Aborted("no candidate passed")
            heat = self._race(field)
            if isinstance(heat, Race):
                break
            broke = run.failed(field[heat.index].record, "race", heat)
            self.done = [(p, broke if r.key == broke.key else r) for p, r in self.done]
        run.append(heat)
        tried = sum(record.status not in ("rejected", "skipped") for _, record in self.done)
        if heat.noise_floor > UNQUIET and not run.watch.over():
            heat = self._repeated(field, f"its noise floor was {heat.noise_floor:.0%}")
        _quiet(heat)
        result = verdict.decide(job.op, job.case, field, heat, run.dram_bytes_per_s, tried)
        if not heat.confirms and (why := verdict.surprise(field, heat, result.entry, self.known_entry)) is not None:
            second = self._repeated(field, why)
            _quiet(second)
            result = verdict.decide(job.op, job.case, field, heat, run.dram_bytes_per_s, tried, second)
        return result

    def _race(self, field: list[Finalist]) -> Race | Broken:
        self._load()
        answer = self.lane.executor.race(RunRace(field, self.run.budget))
        if isinstance(answer, Broken) and not 0 <= answer.index < len(field):
            raise Aborted(f"its race cannot be run: {answer.problem}")
        return answer if isinstance(answer, Broken) else answer.race

    def _repeated(self, field: list[Finalist], why: str) -> Race:
        """The race run again, in a worker that has run nothing."""
        self.lane.executor.replace()
        second = self._race(field)
        if isinstance(second, Broken):
            raise Aborted(f"{why}, and the race could not be repeated: {second.problem}")
        second = msgspec.structs.replace(second, confirms=why)
        self.run.append(second)
        return second


def _quiet(heat: Race) -> None:
    """Raise Aborted where a race is too noisy to be published."""
    if (floor := heat.noise_floor) > UNQUIET:
        raise Aborted(
            f"its races had a noise floor of {floor:.0%}, and above {UNQUIET:.0%} nothing is published", floor
        )


def _figure(record: Candidate) -> float | None:
    """Median seconds of a candidate, as search takes it; None where it was not timed."""
    return stats.median(record.samples_s) if record.samples_s else None


def _is(planned: Planned, entry: Entry | None) -> bool:
    return entry is not None and (planned.variant.name, config_dict(planned.config)) == (entry.variant, entry.config)


def _earlier(run: Decider, job: Job) -> tuple[Entry | None, list[tuple[str, Mapping[str, object]]]]:
    """(the entry of this very case, variants and configurations of it and of its neighbours, nearest first)."""
    if run.incumbents is None:
        return None, []
    matches = run.incumbents.matches(job.op, job.case)
    exact = next((m.entry for m in matches if m.distance == 0 and m.entry.status == "measured"), None)
    return exact, [(m.variant.name, config_dict(m.config)) for m in matches]
