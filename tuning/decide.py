"""Decides one case: candidates tried in the order that search asks for, the best raced, the outcome recorded.

One candidate's trouble is its own: it is recorded, and the run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from griffin_kernels import registry
from griffin_kernels.contract import config_dict, config_key
from griffin_kernels.device import Device
from griffin_kernels.records import CaseRecord, Entry
from roofline import stats
from tuning import journal, race
from tuning.ahead import Ahead, Coming
from tuning.budget import HOPELESS_ELSEWHERE, HOPELESS_FACTOR, Budget
from tuning.course import Course
from tuning.isolation import Death, Executor
from tuning.messages import Broken
from tuning.plan import Job, Planned
from tuning.progress import Listener
from tuning.records import Candidate, Ceiling, Noise, Race, Record, Result, Run

Done = list[tuple[Planned, Candidate]]


class History:
    """What a journal already holds, for resuming: candidates, races and results whose source has not changed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.run = next((r for r in records if isinstance(r, Run)), None)
        self.candidates = {r.key: r for r in records if isinstance(r, Candidate)}
        self.results = {(r.entry.op, r.entry.case.case(r.entry.op).key): r for r in records if isinstance(r, Result)}
        self.ceilings = {r.name: r for r in records if isinstance(r, Ceiling)}
        self.noise = next((r for r in records if isinstance(r, Noise)), None)


@dataclass(frozen=True)
class Lane:
    """One device that works through cases. name: as ``device.detect`` takes it; empty where there is only one."""

    name: str
    executor: Executor


class Hopeless(NamedTuple):
    """Why a candidate is skipped, and the seconds that its like took, or would take here."""

    why: str
    seconds: float


class Aborted(Exception):
    """A case that cannot be decided, with the sentence that says why."""


@dataclass
class Decider:
    """What all cases of a run share. Lanes call ``decide`` at the same time.

    incumbents: entries of this device as published before. strategy: by name; empty for the one that suits the space.
    late: whether no case may be begun any more. left: cases that were not, in words.
    """

    device: Device
    budget: Budget
    history: History
    log: journal.Journal
    listener: Listener
    dram_bytes_per_s: float
    incumbents: registry.Registry | None = None
    strategy: str = ""
    ahead: Ahead | None = None
    late: Callable[[], bool] = lambda: False
    left: list[str] = field(default_factory=list)
    behind: dict[tuple[str, tuple[str, ...]], tuple[float, str]] = field(default_factory=dict)
    courses: dict[tuple[str, str], Course] = field(default_factory=dict)
    begun: set[tuple[str, str]] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def known(self, job: Job, planned: Planned) -> Candidate | None:
        """The journal's record of a candidate, if it is of the source as it is now."""
        record = self.history.candidates.get(planned.key(job.case, self.device))
        return record if record is not None and record.source_hash == planned.variant.source_hash else None

    def expected(self, job: Job) -> int:
        """How many candidates of a case will be in the journal, at most."""
        points = len(job.competitors)
        return len(job.candidates) - points + self.budget.tries(points)

    def course(self, job: Job) -> Course:
        """The course of a job; its predictions are made once."""
        key = (job.op.name, job.case.key)
        if key not in self.courses:
            near = _earlier(self, job)[1]
            self.courses.setdefault(key, Course(job, self.device, self.budget, self.strategy, near))
        return self.courses[key]

    def openings(self, jobs: Sequence[Job]) -> Coming:
        """What the jobs that have not begun will begin with: to be compiled long before their turn."""
        for job in jobs:
            if self._begun(job):
                continue
            for planned in self.course(job).opening():
                if self._begun(job):
                    break  # its lane knows better by now
                if self.known(job, planned) is None:
                    yield job.case, planned

    def _begun(self, job: Job) -> bool:
        return (job.op.name, job.case.key) in self.begun

    def blank(self, job: Job, planned: Planned) -> Candidate:
        """A candidate's record before anything is known of it but that it was planned."""
        return Candidate(
            key=planned.key(job.case, self.device),
            op=job.op.name,
            variant=planned.variant.name,
            case=CaseRecord.of(job.case),
            config=config_dict(planned.config),
            baseline=planned.variant.baseline,
            is_default=planned is job.default,
            status="rejected",
            problem=planned.reason,
            source_hash=planned.variant.source_hash,
        )

    def give_up(self, job: Job, planned: Planned, death: Death) -> None:
        """Record a candidate that ended its process before its turn: it does not get one."""
        replace = msgspec.structs.replace
        record = replace(self.blank(job, planned), status=death.status, stage="compile", problem=death.problem)
        with self.lock:
            self.append(record)
            self.history.candidates[record.key] = record
            self.listener.note(f"  {record.status}: {record.key}: {record.problem}")

    def append(self, record: Record) -> None:
        """Write to the journal; lanes take turns."""
        with self.lock:
            self.log.append(record)

    def decide(self, job: Job, lane: Lane, entries: Sequence[Entry]) -> Result | None:
        """The decision on a case, recorded; None where nothing of ours can run, or it is too late to begin.

        entries: what it may call.
        """
        with self.lock:
            if self.late() and (job.op.name, job.case.key) not in self.history.results:
                self.left.append(f"{job.op.name} {job.case.key}")
                return None
            self.begun.add((job.op.name, job.case.key))
            self.listener.job(job.op.name, job.case.key, lane=lane.name)
        case = _Case(self, job, lane, entries)
        try:
            done = case.try_candidates()
            earlier = self.history.results.get((job.op.name, job.case.key))
            if earlier is not None and not case.fresh and _current(earlier, done):
                return earlier
            return case.settle(done)
        except Aborted as reason:
            with self.lock:
                self.listener.note(f"{job.op.name} {job.case.key}: {reason}; nothing is published for it")
            return None


def _current(result: Result, done: Done) -> bool:
    """Whether the winner of an earlier decision is still among what was found right."""
    return any(record.key == result.winner_key and record.status == "ok" for _, record in done)


class _Case:
    """One case on its way. fresh: something of it was tried now."""

    def __init__(self, run: Decider, job: Job, lane: Lane, entries: Sequence[Entry]) -> None:
        self.run, self.job, self.lane, self.entries = run, job, lane, list(entries)
        self.fresh = False
        self._loaded = False
        self.best_s: float | None = None
        self.known_entry = _earlier(run, job)[0]
        self.course = run.course(job)
        self.incumbent = next((p for p in self.course.points if _is(p, self.known_entry)), None)

    def try_candidates(self) -> Done:
        """Records of the candidates in the order tried: what cannot run, the default, baselines, then search's."""
        done: Done = []
        course = self.course
        for planned in self.job.candidates:
            if planned.reason is not None:
                self._take(done, planned, None)
        self._expect(course.opening(), done)
        seen: dict[int, float | None] = {}
        for planned in course.certain:
            record = self._take(done, planned, None)
            if not planned.variant.baseline:
                seen[course.points.index(planned)] = _figure(record)
        tried, skipped = len(seen), 0
        while (index := course.next(seen, tried)) is not None:
            planned = course.points[index]
            hopeless = self._hopeless(planned, done)
            self._expect(course.coming(seen, tried, (index,)), done)
            record = self._take(done, planned, hopeless)
            if hopeless is not None and record.status == "skipped":
                # not counted as tried, but search is told how far behind its like was
                seen[index], skipped = hopeless.seconds, skipped + 1
                with self.run.lock:
                    self.run.listener.dropped(-1)
            else:
                seen[index], tried = _figure(record), tried + 1
        self._expect(iter(()), done)
        with self.run.lock:
            self.run.listener.dropped(self.run.expected(self.job) + skipped - len(done))
        return done

    def _expect(self, coming: Iterator[Planned], done: Done) -> None:
        """Have compiled ahead what will probably be tried here, while what is tried now is timed."""

        def worthwhile(planned: Planned) -> bool:
            return self.run.known(self.job, planned) is None and self._hopeless(planned, done) is None

        if self.run.ahead is not None:
            self.run.ahead.expect(self.lane.name, ((self.job.case, p) for p in coming if worthwhile(p)))

    def _take(self, done: Done, planned: Planned, hopeless: Hopeless | None) -> Candidate:
        """The record of a candidate, from the journal or made now."""
        record = self.run.known(self.job, planned)
        if record is None:
            self.fresh = True
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
        done.append((planned, record))
        if record.status == "ok":
            figure = stats.median(record.samples_s)
            self.best_s = figure if self.best_s is None else min(self.best_s, figure)
        if record.samples_s and self.best_s is not None:
            behind = (stats.median(record.samples_s) / self.best_s, self.job.case.key)
            with self.run.lock:
                self.run.behind.setdefault((planned.variant.key, self.job.case.flags), behind)
        return record

    def _try(self, planned: Planned, blank: Candidate) -> Candidate:
        began = time.monotonic()
        answer = self.run.ahead.problem(self.job.case, planned) if self.run.ahead is not None else None
        if answer is None:
            self._load()
            patient = blank.is_default or blank.baseline or planned is self.incumbent
            attempt = self.lane.executor.attempt(
                planned.variant.key, blank.config, self.run.budget, self.best_s, patient
            )
            if isinstance(attempt, Broken):
                raise Aborted(f"its inputs cannot be made: {attempt.problem}")
            answer = attempt
        return msgspec.structs.replace(
            blank,
            status=answer.status,
            stage=answer.stage,
            problem=answer.problem,
            errors=answer.errors,
            samples_s=answer.samples_s,
            seconds_spent=time.monotonic() - began,
        )

    def _load(self) -> None:
        if not self._loaded:
            self.lane.executor.load(self.job.op.name, CaseRecord.of(self.job.case), self.entries)
            self._loaded = True

    def _hopeless(self, planned: Planned, done: Done) -> Hopeless | None:
        """Why a candidate is not worth trying: its variant was far behind here, or very far at another case."""
        if self.best_s is None or self.run.budget.thorough or planned is self.incumbent:
            return None
        name = planned.variant.name
        first = next((r for p, r in done if p.variant is planned.variant and r.samples_s), None)
        if first is not None:
            behind = stats.median(first.samples_s) / self.best_s
            text = f"{name} was {behind:.0f} times slower with another configuration"
            return None if behind <= HOPELESS_FACTOR else Hopeless(text, behind * self.best_s)
        behind, where = self.run.behind.get((planned.variant.key, self.job.case.flags), (0.0, ""))
        text = f"{name} was {behind:.0f} times slower than the best at {where}"
        return None if behind <= HOPELESS_ELSEWHERE else Hopeless(text, behind * self.best_s)

    def settle(self, done: Done) -> Result | None:
        """Race the best and record the decision."""
        job, run = self.job, self.run
        while True:
            field = race.finalists(done, job.default, run.budget.finalists, self.incumbent)
            if not any(not f.planned.variant.baseline for f in field):
                raise Aborted("no candidate passed")
            heat = self._race(field)
            if isinstance(heat, Race):
                break
            done = self._without(done, field, heat)
        run.append(heat)
        tried = sum(record.status not in ("rejected", "skipped") for _, record in done)
        result = race.decide(job.op, job.case, field, heat, run.dram_bytes_per_s, tried)
        if (why := race.surprise(field, heat, result.entry, self.known_entry)) is not None:
            result = self._again(field, heat, result, why, tried)
        with run.lock:
            run.append(result)
            run.listener.result(result, lane=self.lane.name)
        return result

    def _race(self, field: Sequence[race.Finalist]) -> Race | Broken:
        self._load()
        answer = self.lane.executor.race(field, self.run.budget)
        if isinstance(answer, Broken) and not 0 <= answer.index < len(field):
            raise Aborted(f"its race cannot be run: {answer.problem}")
        return answer if isinstance(answer, Broken) else answer.race

    def _without(self, done: Done, field: Sequence[race.Finalist], broken: Broken) -> Done:
        """Candidates without the finalist that spoiled the race, whose record now says so."""
        culprit = field[broken.index].record
        record = msgspec.structs.replace(culprit, status=broken.status, stage="race", problem=broken.problem)
        with self.run.lock:
            self.run.append(record)
            self.run.listener.note(f"  {record.status}: {record.key}: {record.problem}")
        return [(p, record if r.key == record.key else r) for p, r in done]

    def _again(self, field: Sequence[race.Finalist], first: Race, result: Result, why: str, tried: int) -> Result:
        """The decision after the race was run again in a worker that has run nothing."""
        self.lane.executor.renew()
        second = self._race(field)
        if isinstance(second, Broken):
            raise Aborted(f"{why}, and the race could not be repeated: {second.problem}")
        second = msgspec.structs.replace(second, confirms=why)
        self.run.append(second)
        return race.settle(self.job.op, self.job.case, field, first, second, self.run.dram_bytes_per_s, tried)


def _figure(record: Candidate) -> float | None:
    """What search is told of a candidate: its seconds, None where it has none."""
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
