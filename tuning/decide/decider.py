"""Decides one case: candidates tried in the order that search asks for, the best raced, the outcome recorded.

A candidate that fails, crashes or hangs is recorded as such, and the run goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from griffin_kernels import device as devices
from griffin_kernels import registry
from griffin_kernels.contract import config_dict, config_key
from griffin_kernels.device import Device
from griffin_kernels.records import Entry
from roofline import stats
from tuning.decide import verdict
from tuning.decide.case_search import CaseSearch
from tuning.decide.history import History
from tuning.decide.listener import Listener
from tuning.measure import machine_ceilings
from tuning.measure.machine_ceilings import MachineCeilings
from tuning.measure.rounds import PATIENCE
from tuning.plan.budget import HOPELESS_ELSEWHERE, HOPELESS_FACTOR, UNQUIET, Budget
from tuning.plan.planner import Job, Planned
from tuning.plan.schedule import Schedule, Watch
from tuning.record import journal
from tuning.record.journal_records import Candidate, Finalist, Place, Race, Result, Undecided
from tuning.workers.compile_pool import CompilePool, Upcoming
from tuning.workers.executor import InProcessExecutor
from tuning.workers.messages import Broken, Load, RunRace, Tried, Try
from tuning.workers.process import Death, IsolatedExecutor


class DeviceLane(NamedTuple):
    """One device that works through cases. name: as ``device.detect`` takes it; empty where there is only one."""

    name: str
    executor: InProcessExecutor | IsolatedExecutor


class Aborted(Exception):
    """A case that cannot be decided, with the sentence that says why. noise: the floor of its races, if that is why."""

    def __init__(self, why: str, noise: float | None = None) -> None:
        super().__init__(why)
        self.noise = noise


@dataclass
class Decider:
    """Decides the cases of a run and holds what they share. Lanes call ``decide`` from threads of their own.

    incumbents: entries of this device as published before. strategy: by name; empty for the one that suits it.
    ceilings: of the device; set before the first case.
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
    ceilings: MachineCeilings | None = None
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
    def machine(self) -> MachineCeilings:
        """The ceilings that cases are judged by."""
        assert self.ceilings is not None
        return self.ceilings

    @property
    def reserve_s(self) -> float:
        """Longest time of a race in seconds, which is kept free for it."""
        return PATIENCE * self.budget.race_seconds

    def search(self, job: Job) -> CaseSearch:
        """The search of a job; its predictions are made once."""
        if job.place not in self.searches:
            found = CaseSearch(job, self.device, self.budget, self.strategy, self.incumbents)
            self.searches.setdefault(job.place, found)
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

    def failed(self, record: Candidate, stage: str, why: Death | Broken) -> Candidate:
        """Record that a candidate failed, and note it."""
        record = msgspec.structs.replace(record, status=why.status, stage=stage, problem=why.problem)
        with self.lock:
            self.log.append(record)
            self.listener.note(f"  {record.status}: {record.key}: {record.problem}")
        return record

    def decide(self, job: Job, lane: DeviceLane, entries: Sequence[Entry]) -> None:
        """Decide a case and record it, or why no candidate can be published; nothing where there is no time for it.

        The schedule is made anew before. entries: decisions of this run so far, for variants that call other ops.
        """
        with self.lock:
            self.begun.add(job.place)
            before, allowed = dict(self.schedule.tries), None
            if (earlier := self.history.decided(job)) is not None:
                tried = self.history.tried(job)
                best = min((stats.median(r.samples_s) for r in tried if r.status == "ok"), default=None)
                for record in tried:
                    self.fell_behind(job, record, best)
                self.decided[job.place] = earlier
            elif not self.watch.over(self.reserve_s):
                allowed = self.schedule.begin(job.place, self.watch)
            if allowed is None:
                self.schedule.skip(job.place)
                self.listener.closed(*job.place)
                return
            changed = [place for place in self.jobs if before.get(place) != self.schedule.tries.get(place)]
            self.listener.expect({place: self.coming(self.jobs[place]) for place in changed})
            self.listener.job(job.op.name, job.case.key, lane=lane.name)
        began = self.watch.clock()
        self.search(job).allow(allowed)
        case = _Case(self, job, lane, entries)
        try:
            result = case.race_and_decide() if case.try_candidates() else None
        except Aborted as reason:
            with self.lock:
                why, command = str(reason), self.repeat(job)
                left = Undecided(op=job.op.name, case=job.case, why=why, command=command, noise_floor=reason.noise)
                self.log.append(left)
                self.undecided[job.place] = left
                self.listener.undecided(left, lane=lane.name)
            return
        with self.lock:
            if result is None:
                self.listener.closed(*job.place)
                return
            # first: what the journal has, an interrupt must not keep from the registry
            self.decided[job.place] = result
            self.log.append(result)
            if not case.resumed:
                self.schedule.done(job.place, case.tried, self.watch.clock() - began)
            self.listener.result(result, lane=lane.name)

    def fell_behind(self, job: Job, record: Candidate, best_s: float | None) -> None:
        """Remember how far the first configuration of a variant was behind the best."""
        if record.samples_s and best_s is not None:
            behind = (stats.median(record.samples_s) / best_s, job.case.key)
            with self.lock:
                self.behind.setdefault((f"{record.op}/{record.variant}", job.case.flags), behind)


class _Case:
    """The work on one case. resumed: an earlier run tried some candidates.

    seen: seconds of points of the search, None for those that failed. tried: how many of them were not skipped.
    """

    def __init__(self, run: Decider, job: Job, lane: DeviceLane, entries: Sequence[Entry]) -> None:
        self.run, self.job, self.lane, self.entries = run, job, lane, list(entries)
        self.resumed = bool(run.history.tried(job))
        self.done: list[tuple[Planned, Candidate]] = []
        self.seen: dict[int, float | None] = {}
        self.tried = 0
        self._loaded = False
        self.best_s: float | None = None
        self.search = run.search(job)
        self._index = {id(planned): index for index, planned in enumerate(self.search.points)}

    def try_candidates(self) -> bool:
        """Try candidates, in this order: what cannot run, the default, baselines, then search's.

        Search ends when the time is up. False where that is before the default and the baselines are tried.
        """
        search = self.search
        for planned in self.job.candidates:
            if planned.reason is not None:
                self._take(planned)
        self._expect(search.opening())
        for planned in search.certain:
            if self._late(planned):
                return False
            self._take(planned)
        if not self.run.budget.searches:  # what an earlier search found competes as it did
            for at, planned in enumerate(search.points):
                if at not in self.seen and self.run.known(self.job, planned) is not None:
                    self._take(planned)
        while (index := search.next(self.seen, self.tried)) is not None:
            planned = search.points[index]
            if self._late(planned):
                break
            hopeless = self._hopeless(planned)
            self._expect(search.coming(self.seen, self.tried, (index,)))
            self._take(planned, hopeless)
        self._expect(iter(()))
        return True

    def _late(self, planned: Planned) -> bool:
        """Whether the time that is left is needed for the race, so that a candidate may not be tried any more."""
        if self.run.known(self.job, planned) is not None:
            return False
        takes = self.run.schedule.seconds_of(self.job.place, planned)
        return self.run.watch.over(self.run.reserve_s + takes)

    def _expect(self, coming: Iterator[Planned]) -> None:
        """Have the candidates that will probably be tried next compiled, while the present one is timed."""
        if self.run.compile_pool is not None:
            worthwhile = (p for p in coming if self.run.known(self.job, p) is None and self._hopeless(p) is None)
            self.run.compile_pool.prefetch(self.lane.name, ((self.job.case, p) for p in worthwhile))

    def _take(self, planned: Planned, hopeless: tuple[str, float] | None = None) -> None:
        """Take up the record of a candidate, from the journal or made now. hopeless: see ``_hopeless``."""
        record = self.run.known(self.job, planned)
        if record is None:
            with self.run.lock:
                self.run.listener.trying(planned.variant.name, config_key(planned.config), lane=self.lane.name)
            blank = self.run.blank(self.job, planned)
            if hopeless is not None:
                record = msgspec.structs.replace(blank, status="skipped", problem=hopeless[0])
            else:
                record = blank if planned.reason is not None else self._try(planned, blank)
            with self.run.lock:
                self.run.log.append(record)
                self.run.listener.candidate(record, lane=self.lane.name)
        self.done.append((planned, record))
        figure = stats.median(record.samples_s) if record.samples_s else None
        if record.status == "ok" and figure is not None:
            self.best_s = min(figure, self.best_s or figure)
        self.run.fell_behind(self.job, record, self.best_s)
        if (index := self._index.get(id(planned))) is not None:
            if hopeless is not None and record.status == "skipped":
                # not counted as tried, but search is told how far behind its like was
                self.seen[index] = hopeless[1]
            else:
                self.seen[index], self.tried = figure, self.tried + 1

    def _try(self, planned: Planned, blank: Candidate) -> Candidate:
        began = self.run.watch.clock()
        pool = self.run.compile_pool
        answer: Tried | Broken | None = None if pool is None else pool.problem(self.job.case, planned)
        if answer is None:
            self._load()
            patient = blank.is_default or blank.baseline or planned is self.search.incumbent
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

    def _hopeless(self, planned: Planned) -> tuple[str, float] | None:
        """Why a candidate is skipped, and the seconds that search takes it for: as its variant's others took.

        Its variant was far behind here, or very far at another case.
        """
        if self.best_s is None or self.run.budget.thorough or planned is self.search.incumbent:
            return None
        name = planned.variant.name
        first = next((r for p, r in self.done if p.variant is planned.variant and r.samples_s), None)
        if first is not None:
            behind = stats.median(first.samples_s) / self.best_s
            text = f"{name} was {behind:.0f} times slower with another configuration"
            return None if behind <= HOPELESS_FACTOR else (text, behind * self.best_s)
        behind, where = self.run.behind.get((planned.variant.key, self.job.case.flags), (0.0, ""))
        text = f"{name} was {behind:.0f} times slower than the best at {where}"
        return None if behind <= HOPELESS_ELSEWHERE else (text, behind * self.best_s)

    def race_and_decide(self) -> Result:
        """Race the best and decide. A race that is too noisy, or surprises, is run again once."""
        job, run = self.job, self.run
        while True:
            field = verdict.finalists(self.done, job.default, run.budget.finalists, self.search.incumbent)
            if all(f.record.baseline for f in field):
                raise Aborted("no candidate passed")
            heat = self._race(field)
            if isinstance(heat, Race):
                break
            broke = run.failed(field[heat.index].record, "race", heat)
            self.done = [(p, broke if r.key == broke.key else r) for p, r in self.done]
        tried = sum(record.status not in ("rejected", "skipped") for _, record in self.done)

        def decided(first: Race, *again: Race) -> Result:
            if (floor := (first, *again)[-1].noise_floor) > UNQUIET:
                text = f"its races had a noise floor of {floor:.0%}, and above {UNQUIET:.0%} nothing is published"
                raise Aborted(text, floor)
            return verdict.decide(job.op, field, first, run.machine.known, tried, *again)

        if heat.noise_floor > UNQUIET and not run.watch.over():
            heat = self._repeated(field, f"its noise floor was {heat.noise_floor:.0%}")
        result = decided(heat)
        if not heat.confirms and (why := verdict.surprise(field, heat, result.entry, self.search.entry)) is not None:
            result = decided(heat, self._repeated(field, why))
        return result

    def _race(self, field: list[Finalist], confirms: str = "") -> Race | Broken:
        """A race, which is recorded, or why it broke. confirms: what it is run again for."""
        self._load()
        reached = [self._reached()]
        answer = self.lane.executor.race(RunRace(field, self.run.budget))
        if isinstance(answer, Broken):
            if not 0 <= answer.index < len(field):
                raise Aborted(f"its race cannot be run: {answer.problem}")
            return answer
        reached.append(self._reached())
        beside = {name: [v for found in reached for v in found.get(name, ())] for found in reached for name in found}
        heat = msgspec.structs.replace(answer.race, confirms=confirms, ceilings=beside)
        with self.run.lock:
            self.run.log.append(heat)
            for ceiling in self.run.machine.raised(beside):
                self.run.log.append(machine_ceilings.record(ceiling))
        return heat

    def _reached(self) -> dict[str, list[float]]:
        """Samples of the ceiling that binds the case, on this lane's device, now."""
        where = devices.detect(self.lane.name) if self.lane.name else self.run.device
        return self.run.machine.beside(self.job.op.name, self.job.case, where)

    def _repeated(self, field: list[Finalist], why: str) -> Race:
        """The race run again, in a worker that has run nothing."""
        self.lane.executor.replace()
        second = self._race(field, why)
        if isinstance(second, Broken):
            raise Aborted(f"{why}, and the race could not be repeated: {second.problem}")
        return second
