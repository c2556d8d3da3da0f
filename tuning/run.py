"""One tuning run: plan, correctness gate, timing, race, journal, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import gc
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from griffin_kernels import device as devices
from griffin_kernels import dispatch, errors, registry, verify
from griffin_kernels.contract import config_dict, config_key
from griffin_kernels.device import Device
from griffin_kernels.records import SCHEMA_VERSION, CaseRecord, DeviceRecord, Entry, RegistryFile
from roofline import measure, stats
from tuning import gate, journal, plan, race, timing
from tuning.budget import HOPELESS_ELSEWHERE, HOPELESS_FACTOR, SLOW_FACTOR, Budget
from tuning.plan import Job, Options, Planned
from tuning.progress import Listener
from tuning.records import JOURNAL_VERSION, Candidate, Ceiling, End, OutputError, Record, Result, Run


@dataclass(frozen=True)
class Paths:
    """Where a run puts its results."""

    journal: Path
    registry: Path
    report: Path

    @classmethod
    def choose(cls, out: Path | None, device: Device) -> Paths:
        """Everything into ``out``; without it, the user's data folder."""
        if out is not None:
            return cls(out / journal.FILE_NAME, out / f"{device.slug}.json", out / "report.html")
        folder = Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / "results" / device.slug
        return cls(folder / journal.FILE_NAME, registry.default_path(device), folder / "report.html")

    def is_users(self, device: Device) -> bool:
        """Whether results go to the user's data folder, where dispatch looks."""
        return self.registry == registry.default_path(device)

    def prepare(self, device: Device) -> None:
        """Make the folders and prove that they can be written and that the registry can be merged into.

        Raises OutputFolderError or RegistryError before any work is done.
        """
        for folder in {self.journal.parent, self.registry.parent, self.report.parent}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"\0")
                    probe.flush()
            except OSError as error:
                text = f"results cannot be written to {folder}: {error.strerror}; choose another folder with --out"
                raise errors.OutputFolderError(text) from None
        if self.registry.exists():
            registry.load_for(self.registry, device)


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves."""

    entries: tuple[Entry, ...]
    paths: Paths
    seconds: float


class History:
    """What a journal already holds, for resuming: candidates, races and results whose source has not changed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.run = next((r for r in records if isinstance(r, Run)), None)
        self.candidates = {r.key: r for r in records if isinstance(r, Candidate)}
        self.results = {(r.entry.op, r.entry.case.case(r.entry.op).key): r for r in records if isinstance(r, Result)}
        self.ceilings = {r.name: r for r in records if isinstance(r, Ceiling)}

    def options(self) -> Options:
        """The options of the run, as it was started."""
        if self.run is None:
            return Options()
        return msgspec.convert(self.run.options, Options)


def tune(
    options: Options,
    paths: Paths,
    listener: Listener,
    command: str = "griffin tune",
    resume: bool = False,
) -> Outcome:
    """Tune everything that ``options`` asks for and publish the winners.

    Nothing is published before every planned case is decided; an interrupted run keeps its journal, and with
    ``resume`` goes on after the last finished candidate. Raises errors of griffin_kernels.errors; KeyboardInterrupt
    passes through.
    """
    began = time.monotonic()
    device = devices.detect(options.device or None)
    paths.prepare(device)
    records = journal.read(paths.journal) if paths.journal.exists() else []
    go_on = resume and journal.unfinished(records)
    history = History(records if go_on else [])
    if go_on:
        _check_resumable(history, options, device, paths.journal)
        options = history.options()
    jobs = plan.make(options, device)
    if records and not go_on:
        journal.set_aside(paths.journal, records)
    total = sum(len(job.candidates) for job in jobs)
    with journal.Journal(paths.journal) as log:
        provenance = devices.provenance(device)
        log.append(
            Run(
                journal_version=JOURNAL_VERSION,
                run_id=history.run.run_id if history.run else _run_id(),
                date=_now(),
                device=DeviceRecord(device.validity(), provenance),
                command=command,
                options=_plain(options),
                planned=total,
                resumed=go_on,
            )
        )
        roof = _memory_roof(device, history, log, listener)
        tuner = _Tuner(device, options.limits(), history, log, listener, roof)
        listener.begin(total, sum(tuner.known(job, p) is not None for job in jobs for p in job.candidates))
        entries: list[Entry] = []
        for job in jobs:
            with _overlay(device, entries):
                result = tuner.decide(job)
            if result is not None:
                entries.append(result.entry)
        registry.publish(paths.registry, device, entries, provenance)
        dispatch.refresh()
        seconds = time.monotonic() - began
        log.append(End(date=_now(), registry=str(paths.registry), seconds=seconds))
    return Outcome(tuple(entries), paths, seconds)


def _check_resumable(history: History, options: Options, device: Device, path: Path) -> None:
    if history.run is None:
        raise errors.JournalError(f"journal {path} does not begin with a run; move it away to start anew")
    if history.run.device.validity != device.validity():
        name = history.run.device.validity.get("name")
        raise errors.JournalError(
            f"journal {path} is of another device ({name}), this is {device.name}; use another --out"
        )
    default = Options(device=options.device)
    if options not in (default, history.options()):
        raise errors.JournalError(
            f"--resume goes on with the options the run was started with ({history.run.command}); leave the others out"
        )


def _run_id() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S-") + uuid.uuid4().hex[:6]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _plain(options: Options) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def _overlay(device: Device, entries: Sequence[Entry]) -> contextlib.AbstractContextManager[None]:
    """Ops tuned so far serve the ops that call them, and nothing tuned earlier on this machine does."""
    file = RegistryFile(
        schema_version=SCHEMA_VERSION, device=DeviceRecord(device.validity(), {}), entries=list(entries)
    )
    return dispatch.use(registry=registry.Registry(device, [("this run", file)]))


def _memory_roof(device: Device, history: History, log: journal.Journal, listener: Listener) -> float:
    """The fastest measured DRAM stream in bytes per second, measured once per journal."""
    known = {name: c for name, c in history.ceilings.items() if name.startswith("dram_")}
    if not known:
        listener.note(f"measuring DRAM bandwidth of {device.name}")
        for c in measure.dram(device):
            known[c.name] = Ceiling(name=c.name, value=c.value, low=c.low, high=c.high, unit=c.unit)
            log.append(known[c.name])
    return max(ceiling.value for ceiling in known.values())


@dataclass
class _Tuner:
    """Works through jobs. One candidate's trouble is its own: it is recorded and the run goes on."""

    device: Device
    budget: Budget
    history: History
    log: journal.Journal
    listener: Listener
    dram_bytes_per_s: float
    behind: dict[tuple[str, tuple[str, ...]], tuple[float, str]] = dataclasses.field(default_factory=dict)

    def known(self, job: Job, planned: Planned) -> Candidate | None:
        """The journal's record of a candidate, if it is of the source as it is now."""
        record = self.history.candidates.get(planned.key(job.case, self.device))
        return record if record is not None and record.source_hash == planned.variant.source_hash else None

    def decide(self, job: Job) -> Result | None:
        """Try what has not been tried, race the best, record the decision; None where nothing of ours can run."""
        self.listener.job(job.op.name, job.case.key)
        earlier = self.history.results.get((job.op.name, job.case.key))
        if earlier is not None and all(self.known(job, p) for p in job.candidates):
            return earlier
        arena = _Arena(job, self.device)
        done: list[tuple[Planned, Candidate]] = []
        best: float | None = None
        for planned in job.candidates:
            record = self.known(job, planned)
            if record is None:
                self.listener.trying(planned.variant.name, config_key(planned.config))
                hopeless = self.hopeless(job, planned, done, best)
                record = (
                    self.candidate(job, planned, arena, best) if hopeless is None else self.skip(job, planned, hopeless)
                )
                self.log.append(record)
                self.listener.candidate(record)
            done.append((planned, record))
            if record.status == "ok":
                fastest = stats.median(record.samples_s)
                best = fastest if best is None else min(best, fastest)
            if record.samples_s and best is not None:
                behind = stats.median(record.samples_s) / best
                self.behind.setdefault((planned.variant.key, job.case.flags), (behind, job.case.key))
        field = race.finalists(done, job.default, self.budget.finalists)
        if not any(not f.planned.variant.baseline for f in field):
            self.listener.note(f"{job.op.name} {job.case.key}: no candidate passed; nothing is published for it")
            return None
        samplers = [arena.sampler(f.planned) for f in field]
        heat = race.run(job.op, job.case, field, samplers, self.budget)
        self.log.append(heat)
        tried = sum(record.status not in ("rejected", "skipped") for _, record in done)
        result = race.decide(job.op, job.case, field, heat, self.dram_bytes_per_s, tried)
        self.log.append(result)
        self.listener.result(result)
        return result

    def hopeless(
        self, job: Job, planned: Planned, done: Sequence[tuple[Planned, Candidate]], best: float | None
    ) -> str | None:
        """Why a candidate is not worth trying: its variant was far behind here, or very far at another case."""
        if best is None or self.budget.thorough or planned is job.default or planned.variant.baseline:
            return None
        name = planned.variant.name
        first = next((r for p, r in done if p.variant is planned.variant and r.samples_s), None)
        if first is not None:
            behind = stats.median(first.samples_s) / best
            return (
                None
                if behind <= HOPELESS_FACTOR
                else f"{name} was {behind:.0f} times slower with another configuration"
            )
        behind, where = self.behind.get((planned.variant.key, job.case.flags), (0.0, ""))
        return (
            None if behind <= HOPELESS_ELSEWHERE else f"{name} was {behind:.0f} times slower than the best at {where}"
        )

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

    def skip(self, job: Job, planned: Planned, reason: str) -> Candidate:
        return msgspec.structs.replace(self.blank(job, planned), status="skipped", problem=reason)

    def candidate(self, job: Job, planned: Planned, arena: _Arena, best: float | None) -> Candidate:
        """Gate and time one candidate."""
        began = time.monotonic()
        record = self.blank(job, planned)
        change = functools.partial(_changed, record)
        if planned.reason is not None:
            return record
        try:
            verdict = gate.check(job.op, planned, self.device, arena.problems)
            found = [OutputError(e.output, e.rel_norm, e.worst) for e in verdict.errors]
            if not verdict.ok:
                return change(status="wrong", problem=verdict.problem, errors=found, began=began)
            samples, cut_off = self.sample(arena.sampler(planned), best, patient=record.is_default or record.baseline)
        except Exception as error:  # whatever a kernel raises is that kernel's result
            text = " ".join(str(error).split())[:500]
            return change(status="failed", problem=f"{type(error).__name__}: {text}", began=began)
        problem = None if not cut_off else f"more than {SLOW_FACTOR:g} times slower than the best so far"
        return change(status="slow" if cut_off else "ok", problem=problem, errors=found, samples_s=samples, began=began)

    def sample(self, sampler: timing.Sampler, best: float | None, patient: bool) -> tuple[list[float], bool]:
        """(samples, cut off): samples until the budget is used, or two if those are hopeless."""
        samples: list[float] = []
        deadline = time.monotonic() + self.budget.seconds
        while len(samples) < self.budget.least or (len(samples) < self.budget.most and time.monotonic() < deadline):
            samples.append(sampler())
            if len(samples) == 2 and not patient and best is not None and min(samples) > SLOW_FACTOR * best:
                return samples, True
        return samples, False


def _changed(record: Candidate, began: float, **facts: object) -> Candidate:
    return msgspec.structs.replace(record, seconds_spent=time.monotonic() - began, **facts)


class _Arena:
    """Inputs of one job, made when first needed and shared by its candidates."""

    def __init__(self, job: Job, device: Device) -> None:
        self.job, self.device = job, device

    @functools.cached_property
    def problems(self) -> list[gate.Problem]:
        gc.collect()
        return gate.problems(self.job.op, self.job.case, self.device)

    @functools.cached_property
    def rotation(self) -> list[dict[str, object]]:
        inputs = (
            self.problems[0].inputs
            if "problems" in self.__dict__
            else self.job.op.make_inputs(self.job.case, self.device.torch_device, 0)
        )
        # what the op changes in place is copied: the problem's own tensors are what later candidates are checked on
        own = {name: verify.copy_of(inputs[name]) for name in self.job.op.in_place}
        return timing.copies({**inputs, **own}, self.device)

    def sampler(self, planned: Planned) -> timing.Sampler:
        run = functools.partial(planned.variant.run, config=planned.config)
        return timing.sampler(run, self.rotation, self.device)
