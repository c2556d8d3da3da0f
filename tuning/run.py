"""One tuning run: plan, noise floor, every case decided on one device or several, journal, publish, study."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import queue
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from griffin_kernels import device as devices
from griffin_kernels import dispatch, errors, registry
from griffin_kernels.contract import config_dict
from griffin_kernels.device import Device
from griffin_kernels.records import DeviceRecord, Entry
from griffin_kernels.texts import now
from roofline import measure, store
from roofline import study as studies
from roofline.ceilings import Ceiling, best_of
from roofline.floors import judged
from roofline.study import Timing
from roofline.study_records import FILE_NAME, Study
from tuning.decide.decider import Decider, DeviceLane
from tuning.decide.history import History
from tuning.decide.listener import Listener
from tuning.measure import machine_ceilings, rounds
from tuning.measure.machine_ceilings import MachineCeilings
from tuning.plan import planner
from tuning.plan.budget import ceilings_s
from tuning.plan.planner import Job, Options
from tuning.plan.schedule import Clock, Schedule, Watch
from tuning.record import journal
from tuning.record.journal_records import JOURNAL_VERSION, CeilingRecord, End, Record, Run, Undecided
from tuning.record.paths import Paths
from tuning.static.recorded import CompileRequest
from tuning.workers import compile_farm
from tuning.workers.compile_pool import CompilePool, processes_for
from tuning.workers.executor import InProcessExecutor
from tuning.workers.messages import Start
from tuning.workers.process import Death, IsolatedExecutor, Limits

STUDY_TIMING: Mapping[str, Timing] = {
    "quick": Timing(seconds=0.0, ceilings=3.0, between=1.0),
    "default": Timing(seconds=15.0, ceilings=3.0, between=1.0),
    "thorough": Timing(seconds=240.0, ceilings=20.0),
}
"""How long the study of a device measures, by budget."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: each of its cases is in one of entries, left and undecided.

    entries: what was published. options: what it was begun with. left: cases that it had no time for, in words.
    undecided: cases that it had time for, and for which nothing was published. interrupted: a signal ended it.
    """

    entries: tuple[Entry, ...]
    paths: Paths
    seconds: float
    options: Options
    left: tuple[str, ...] = ()
    undecided: tuple[Undecided, ...] = ()
    interrupted: bool = False

    @property
    def cases(self) -> int:
        """How many were planned."""
        return len(self.entries) + len(self.left) + len(self.undecided)

    @property
    def whole(self) -> bool:
        """Whether it covers all ops, cases and dtypes, as models need them: then a study follows."""
        return self.options.whole and not self.left


def tune(
    options: Options,
    paths: Paths,
    listener: Listener,
    command: str = "griffin tune",
    resume: bool = False,
    prepare: str = "",
    clock: Clock = time.monotonic,
) -> Outcome:
    """Tune everything that ``options`` asks for and publish the winners.

    Winners are published together: when every planned case is decided, when the time that ``options`` gives is over,
    or at a KeyboardInterrupt, as Ctrl-C raises it, and before a WorkerError is raised. A run that did not come to its
    end keeps its journal, and with ``resume`` goes on after the last finished candidate.

    prepare: ``module:function`` that every worker calls first, to register variants of one's own. clock: seconds, for
    all that the tuner itself times. Raises errors of griffin_kernels.errors; a KeyboardInterrupt while winners are
    published, or before anything is measured, passes through.
    """
    device = devices.detect(options.device or None)
    paths.prepare(device)
    records = journal.read(paths.journal) if paths.journal.exists() else []
    unfinished = journal.unfinished(records)
    go_on = bool(records) if options.baselines else resume and unfinished
    history = History(records if go_on else [])
    if go_on:
        options = _resumed(history.run, options, device, paths.journal)
    incumbents = _published(paths.registry, device)
    jobs = jobs_of(options, device, paths)
    if records and not go_on:
        journal.set_aside(paths.journal, records)
    with ExitStack() as stack:
        log = stack.enter_context(journal.Journal(paths.journal))
        provenance = devices.provenance(device)
        names = lane_names(device, options)
        watch = Watch(clock, 60 * options.minutes or math.inf)
        decider = Decider(
            device,
            options.limits(),
            history,
            log,
            listener,
            incumbents=incumbents,
            strategy=options.strategy,
            watch=watch,
            schedule=Schedule(jobs, device, options, records, len(names)),
            jobs={job.place: job for job in jobs},
            repeat=lambda job: repeating(job, options, paths, device, command),
        )
        began = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        log.append(
            Run(
                journal_version=JOURNAL_VERSION,
                run_id=history.run.run_id if history.run else f"{began}-{uuid.uuid4().hex[:6]}",
                date=now(),
                device=DeviceRecord(device.validity(), provenance),
                command=command,
                options=msgspec.to_builtins(options),
                planned=sum(map(decider.planned, jobs)),
                resumed=go_on,
            )
        )
        problem: BaseException | None = None
        try:
            _work(decider, jobs, options, names, prepare, stack, paths.is_users(device))
        except (KeyboardInterrupt, errors.WorkerError) as error:
            problem = error
        # decisions of the interrupted run count too
        earlier = {job.place: found for job in jobs if (found := history.decided(job)) is not None}
        decided = earlier | decider.decided
        results = [decided[job.place] for job in jobs if job.place in decided]
        entries = [result.entry for result in results]
        if decider.ceilings is not None:  # what races reached after a decision may have raised them
            entries = [judged(entry, decider.ceilings.known) for entry in entries]
        undecided = [decider.undecided[job.place] for job in jobs if job.place in decider.undecided]
        ended = decided.keys() | decider.undecided.keys()
        left = tuple(" ".join(job.place) for job in jobs if job.place not in ended)
        if entries or not left:
            registry.publish(paths.registry, device, entries, provenance)
            dispatch.refresh()
        if isinstance(problem, errors.WorkerError):
            raise problem
        for result, entry in zip(results, entries, strict=True):
            if entry != result.entry:
                log.append(msgspec.structs.replace(result, entry=entry))
        seconds = watch.elapsed
        if not left and not (options.baselines and unfinished):
            log.append(End(date=now(), registry=str(paths.registry), seconds=seconds))
    interrupted = isinstance(problem, KeyboardInterrupt)
    return Outcome(tuple(entries), paths, seconds, options, left, tuple(undecided), interrupted)


def _work(
    decider: Decider, jobs: Sequence[Job], options: Options, names: Sequence[str], prepare: str, stack: ExitStack,
    shared: bool,
) -> None:  # fmt: skip
    """Precompile, then measure ceilings, noise floor and all cases. stack: closes what is opened here."""
    device, history, log, listener = decider.device, decider.history, decider.log, decider.listener
    pool = compile_pool_of(device, options, len(names))
    if pool is not None:
        decider.compile_pool = stack.enter_context(pool)
        decider.compile_pool.prefetch(None, decider.openings(jobs))
    _precompile(decider, jobs, options, prepare)
    # once per journal; they are whole where the noise floor came after them
    table = machine_ceilings.recorded(history.ceilings) if history.noise is not None else []
    if not table:
        table = _ceilings(device, options, shared, listener)
        for ceiling in table:
            log.append(machine_ceilings.record(ceiling))
    decider.ceilings = MachineCeilings(device, table)
    if history.noise is None:  # a kernel raced against itself, before anything is compared
        log.append(found := rounds.machine_noise(device))
        listener.noise(found)
    listener.expect({job.place: decider.coming(job) for job in jobs})
    listener.begin(sum(decider.known(job, p) is not None for job in jobs for p in job.candidates))
    lanes = []
    for name in names:
        executor: InProcessExecutor | IsolatedExecutor
        if not options.in_process:
            start = Start(name, torch.get_num_threads(), prepare)
            executor = IsolatedExecutor(_limits(options), [start], listener.worker)
        elif prepare:
            raise errors.ArgumentError("prepare is for workers, and there are none in process")
        else:
            executor = InProcessExecutor(devices.detect(name))
        stack.callback(executor.close)
        lanes.append(DeviceLane(name if len(names) > 1 else "", executor))
    decide_all(decider, jobs, lanes)


def _ceilings(device: Device, options: Options, shared: bool, listener: Listener) -> list[Ceiling]:
    """The ceilings that the run is judged by: stored ones of today, else measured now.

    shared: results go to the user's data folder, where ceilings are stored too.
    """
    path = store.default_path(device)
    if shared and (known := machine_ceilings.stored(path, device, datetime.datetime.now(datetime.UTC))):
        listener.note(f"ceilings of {device.name} are those of {path}, measured within a day")
        return known
    seconds = ceilings_s(options.budget, options.minutes)
    listener.note(f"measuring what {device.name} reaches at best, {seconds:.2g} s: memory, cache, arithmetic")
    found = measure.roofs(device, seconds)
    return best_of(machine_ceilings.earlier(path, device), found) if shared else found


def plan(options: Options, paths: Paths, device: Device) -> tuple[list[Job], list[Record], Schedule]:
    """(what a run would tune, the journal of the run before, the schedule); nothing is measured.

    Raises as ``jobs_of`` does, and JournalError where the journal is broken.
    """
    jobs = jobs_of(options, device, paths)
    earlier = journal.read(paths.journal) if paths.journal.exists() else []
    return jobs, earlier, Schedule(jobs, device, options, earlier, len(lane_names(device, options)))


def repeating(job: Job, options: Options, paths: Paths, device: Device, command: str) -> str:
    """The command that tunes one case again; that of the whole run, where a case cannot be named."""
    if options.misses:
        return command
    words = ["griffin", "tune", "--ops", job.op.name, "--cases", job.case.key]
    words += [] if options.budget == Options().budget else ["--budget", options.budget]
    words += ["--device", options.device] if options.device else []
    words += [] if paths.is_users(device) else ["--out", str(paths.journal.parent)]
    return shlex.join(words)


def decide_all(decider: Decider, jobs: Sequence[Job], lanes: Sequence[DeviceLane]) -> None:
    """Decide all jobs, in their order. An op's cases are shared out among the lanes; the next op begins when all of
    them are decided, since it may call this one.
    """

    def known() -> list[Entry]:
        with decider.lock:
            return [decider.decided[job.place].entry for job in jobs if job.place in decider.decided]

    if len(lanes) == 1:
        for job in jobs:
            decider.decide(job, lanes[0], known())
        return
    free: queue.SimpleQueue[DeviceLane] = queue.SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def on_a_lane(job: Job, entries: Sequence[Entry]) -> None:
        lane = free.get()
        try:
            decider.decide(job, lane, entries)
        finally:
            free.put(lane)

    # workers die with the thread that started them: the threads live as long as the run
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            for _, group in itertools.groupby(jobs, key=lambda job: job.op.name):
                entries = known()
                for future in [pool.submit(on_a_lane, job, entries) for job in group]:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if decider.compile_pool is not None:
                decider.compile_pool.close()
            for lane in lanes:
                lane.executor.close()
            raise


def lane_names(device: Device, options: Options) -> list[str]:
    """Devices to tune on at once: every GPU of one kind, unless one was named; a CPU is one."""
    if device.kind == "cpu":
        return ["cpu"]
    if options.device not in ("", "cuda"):
        return [options.device]
    alike = (i for i in range(torch.cuda.device_count()) if devices.gpu(i).validity() == device.validity())
    return [f"cuda:{i}" for i in alike]


def compile_pool_of(device: Device, options: Options, lanes: int) -> CompilePool | None:
    """The pool that compiles candidates before their turn; None on a CPU and without worker processes."""
    processes = processes_for(device, lanes)
    if not processes or options.in_process:
        return None
    return CompilePool(device.arch, processes, lambda: _limits(options))


def _precompile(decider: Decider, jobs: Sequence[Job], options: Options, prepare: str) -> None:
    """Have a CPU's kernels compiled on all its cores before the machine must be quiet."""
    if decider.device.kind != "cpu" or options.in_process:
        return
    groups = compile_farm.first_calls(jobs, lambda job, planned: decider.known(job, planned) is not None)
    if len(groups) < 2:
        return  # no sooner than in its turn

    def hung(request: CompileRequest, death: Death) -> None:
        for job in jobs:
            for planned in job.candidates if job.case == request.case else ():
                if (planned.variant.key, config_dict(planned.config)) == (request.variant, request.config):
                    record = decider.failed(decider.blank(job, planned), "compile", death)
                    decider.history.candidates[record.key] = record  # it is not tried again

    decider.listener.note(f"compiling the kernels of {sum(map(len, groups))} calls, where they are not on disk yet")
    start = Start("cpu", torch.get_num_threads(), prepare)
    compile_farm.make_calls(groups, start, lambda: _limits(options), hung)


def _limits(options: Options) -> Limits:
    return Limits(options.timeout, int(options.memory_gib * 2**30))


def _published(path: Path, device: Device) -> registry.Registry | None:
    """The registry published for this device before, whose winners compete again; None without one."""
    return registry.Registry(device, [(str(path), registry.load_for(path, device))]) if path.exists() else None


def jobs_of(options: Options, device: Device, paths: Paths) -> list[Job]:
    """What a run will tune, or hold against baselines: then only cases with a measured entry.

    Raises as ``planner.make`` does, and ArgumentError where there is no such entry.
    """
    jobs = planner.make(options, device)
    if not options.baselines:
        return jobs
    incumbents = _published(paths.registry, device)
    found = [
        job
        for job in jobs
        if incumbents is not None
        and any(m.distance == 0 and m.entry.status == "measured" for m in incumbents.matches(job.op, job.case))
    ]
    if not found:
        raise errors.ArgumentError(
            f"{paths.registry} has nothing of these cases to hold baselines against; tune them first"
        )
    return found


def _resumed(run: Run | None, options: Options, device: Device, path: Path) -> Options:
    """The options that an earlier run was started with; those given, where they only race baselines in its journal.

    JournalError where it was on another device, or the options given are others.
    """
    if run is None:
        raise errors.JournalError(f"journal {path} does not begin with a run; move it away to start anew")
    if run.device.validity != device.validity():
        name = run.device.validity.get("name")
        raise errors.JournalError(
            f"journal {path} is of another device ({name}), this is {device.name}; use another --out"
        )
    if options.baselines:
        return options
    # a run may go on for as long as it is given now
    started = dataclasses.replace(msgspec.convert(run.options, Options, strict=False), minutes=options.minutes)
    if options not in (Options(device=options.device, minutes=options.minutes), started):
        raise errors.JournalError(
            f"--resume goes on with the options the run was started with ({run.command}); leave the others out"
        )
    return started


def study(device: Device, outcome: Outcome, tell: Callable[[str], None]) -> tuple[Path, Study]:
    """Study the device with the registry of ``outcome``; returns the file, and what is in it.

    Kernels are judged by the ceilings of the run, as its registry has them. Ceilings go to the user's data folder too,
    unless the run had a folder of its own. Raises OutputFolderError.
    """
    path, timing = outcome.paths.journal.with_name(FILE_NAME), STUDY_TIMING[outcome.options.budget]
    shared = outcome.paths.is_users(device)
    by_name = {r.name: r for r in journal.read(outcome.paths.journal) if isinstance(r, CeilingRecord)}
    judging = machine_ceilings.recorded(by_name)
    with dispatch.use(registry=outcome.paths.registry):
        return path, studies.record(path, device, outcome.entries, timing, tell, shared=shared, judging=judging)
