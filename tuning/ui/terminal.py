"""``griffin tune`` on a terminal: says what it does, draws progress, survives Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.table import Table

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.device import Device
from roofline import tables
from roofline.console import StatusLine
from roofline.units import clock_text
from tuning import device_study
from tuning.decide.listener import Listener
from tuning.plan import planner
from tuning.plan.eta import Estimate
from tuning.plan.planner import Options
from tuning.plan.schedule import Schedule
from tuning.plan.watch import Clock
from tuning.record import journal
from tuning.run import Outcome, Paths, lane_names, schedule_of, tune
from tuning.ui import progress
from tuning.ui.events import EndEvent, Events, InterruptedEvent, now
from tuning.ui.summary import Summary, summary_table


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def describe(device: Device) -> str:
    """One line on a device."""
    unit = "cores" if device.kind == "cpu" else "units"
    cache = (
        f", last-level cache {device.last_level_cache_bytes / 2**20:.0f} MiB" if device.last_level_cache_bytes else ""
    )
    return f"{device.name} ({device.arch}, {device.units} {unit}{cache})"


def show_plan(console: Console, options: Options, out: Path | None = None) -> None:
    """Print what a run would try and how long it would take; nothing is measured or written."""
    device = devices.detect(options.device or None)
    paths = Paths.choose(out, device)
    jobs = planner.make(options, device)
    earlier = journal.read(paths.journal) if paths.journal.exists() else []
    schedule = schedule_of(jobs, device, options, earlier, len(lane_names(device, options)))
    cases = Table(header_style="bold", pad_edge=False)
    for name in ("op", "case", "default"):
        cases.add_column(name, overflow="fold")
    for name in ("candidates", "cannot run", "tries"):
        cases.add_column(name, justify="right")
    for job in jobs:
        refused = sum(p.reason is not None for p in job.candidates)
        default = job.default.variant.name if job.default else "none"
        slot, tries = schedule.slots[job.place], schedule.tries.get(job.place)
        tried = "no time" if tries is None else str(slot.certain + tries)
        cases.add_row(job.op.name, job.case.key, default, str(len(job.candidates) - refused), str(refused), tried)
    _line(console, f"plan for {describe(device)}, budget {options.budget}")
    console.print(cases)
    ops = Table(header_style="bold", pad_edge=False)
    ops.add_column("op", overflow="fold")
    for name in ("cases", "tries", "minutes"):
        ops.add_column(name, justify="right")
    for row in schedule.rows():
        ops.add_row(row.op, str(row.cases), str(row.candidates), f"{row.seconds / 60:.1f}")
    console.print(ops)
    total = sum(p.reason is None for job in jobs for p in job.candidates)
    _line(console, f"{len(jobs)} cases, {total} candidates; nothing was measured")
    _line(console, planned_text(schedule))


def planned_text(schedule: Schedule) -> str:
    """What a run is planned to take, and what that assumes."""
    left = f"; {schedule.left_out} cases do not fit and are left for --resume" if schedule.left_out else ""
    return (
        f"planned to end in about {minutes_text(schedule.seconds)}: {len(schedule.tries)} cases, "
        f"{schedule.candidates} candidates tried ({schedule.words()}){left}"
    )


def minutes_text(seconds: float) -> str:
    """``4 minutes``, ``1.5 hours``."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    minutes = max(1, math.ceil(seconds / 60 - 0.1))
    return f"{minutes} minute{'' if minutes == 1 else 's'}"


@contextlib.contextmanager
def _quiet_third_parties() -> Iterator[None]:
    """Deprecations inside torch and numba are no news to someone who tunes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", errors.UntunedWarning)
        yield


@dataclass(frozen=True)
class Voice:
    """How a run is told. quiet: only problems and the table. events: where JSON lines go, if they are wanted."""

    console: Console
    quiet: bool = False
    events: BinaryIO | None = None

    def say(self, text: str) -> None:
        """A line that is no problem."""
        if not self.quiet:
            _line(self.console, text)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A request to end (SIGTERM) is a KeyboardInterrupt as Ctrl-C is, in the thread that hears of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_in_peace() -> None:
    """Nothing is left that a further Ctrl-C could stop: it would only break off what a process does as it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No Ctrl-C cuts off the sentence that says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def run(
    console: Console | Voice,
    options: Options,
    out: Path | None,
    resume: bool,
    command: str,
    prepare: str = "",
    clock: Clock = time.monotonic,
) -> Outcome | None:
    """Tune and print the table and the paths, also after Ctrl-C; None after a second one, which ends it at once.

    Either way it is said how to go on. prepare, clock: as ``run.tune`` takes them.
    """
    voice = console if isinstance(console, Voice) else Voice(console)
    with interruptible():
        return _run(voice, options, out, resume, command, prepare, clock)


def _run(
    voice: Voice, options: Options, out: Path | None, resume: bool, command: str, prepare: str, clock: Clock
) -> Outcome | None:
    device = devices.detect(options.device or None)
    paths = Paths.choose(out, device)
    jobs = planner.make(options, device)  # a wrong option is answered before anything else is said
    voice.say(f"tuning {describe(device)}")
    voice.say(f"journal   {paths.journal}")
    earlier = journal.read(paths.journal) if paths.journal.exists() else []
    if not (resume and journal.unfinished(earlier)):
        voice.say(planned_text(schedule_of(jobs, device, options, earlier, len(lane_names(device, options)))))
    ticking = device.kind != "cpu"
    display = progress.Display(voice.console, Estimate(earlier), quiet=voice.quiet, ticking=ticking, clock=clock)
    told: list[Listener] = [display]
    events = None
    if voice.events is not None:
        events = Events(voice.events, device.name, str(paths.journal), Estimate(earlier))
        told.append(events)
    try:
        with _quiet_third_parties(), display:
            outcome = tune(options, paths, progress.Several(*told), command, resume, prepare, clock)
    except KeyboardInterrupt:
        with _undisturbed():
            if events is not None:
                events.write(InterruptedEvent(go_on(out)))
            _line(voice.console, f"\nstopped; the journal holds what was measured. Go on with: {go_on(out)}")
        return None
    with _undisturbed() if outcome.interrupted else contextlib.nullcontext():
        if events is not None and outcome.interrupted:
            events.write(InterruptedEvent(go_on(out), len(outcome.entries), len(outcome.left)))
        if outcome.entries or outcome.undecided:
            voice.console.print(summary_table(outcome.entries, voice.console.width, outcome.undecided))
        for text in Summary.of(journal.read(paths.journal)).lines():
            _line(voice.console, text)
        _line(voice.console, f"done in {clock_text(outcome.seconds)}")
        if (standing := standing_text(outcome, out)) is not None:
            _line(voice.console, standing)
        _line(voice.console, f"journal   {paths.journal}")
        if outcome.entries or not outcome.left:
            _line(voice.console, f"registry  {paths.registry}")
    return outcome


def standing_text(outcome: Outcome, out: Path | None) -> str | None:
    """How far a run came that did not come to its end, and what goes on with it; None of one that did."""
    if not outcome.left and not outcome.interrupted:
        return None
    why = "interrupted" if outcome.interrupted else "time is up"
    done, cases = len(outcome.entries), f"{outcome.cases} case{'' if outcome.cases == 1 else 's'}"
    verb = "is" if done == 1 else "are"
    decided = f"{done} of {cases} {verb} decided and published" if done else f"none of {cases} is decided or published"
    if outcome.undecided:
        decided += f", {len(outcome.undecided)} cannot be decided"
    if not outcome.left:
        return f"{why}: {decided}"
    left = f"{len(outcome.left)} are left, from {outcome.left[0]} on"
    return f"{why}: {decided}, {left}; go on with: {go_on(out)}"


def go_on(out: Path | None) -> str:
    """The command that goes on with a run that did not come to its end."""
    return shlex.join(["griffin", "tune", "--resume", *([] if out is None else ["--out", str(out)])])


def run_study(console: Console | Voice, outcome: Outcome) -> Path | None:
    """Study the device that was tuned and print what came out; after Ctrl-C say that the registry stands.

    Returns the file of the study, None where it was not made.
    """
    voice = console if isinstance(console, Voice) else Voice(console)
    device = devices.detect(outcome.options.device or None)
    try:
        line = StatusLine(voice.console)
        with _quiet_third_parties():
            path, found = device_study.run(device, outcome, (lambda text: None) if voice.quiet else line)
        line.clear()
    except KeyboardInterrupt:
        _line(voice.console, "\ninterrupted; the registry stands, the study of whole models was not made")
        return None
    if not voice.quiet:
        tables.show_study(voice.console, found)
    _line(voice.console, f"study     {path}")
    return path


def finish(voice: Voice, outcome: Outcome, report: Path, study_file: Path | None) -> None:
    """The last line of a run: where its report is; for programs, where everything is."""
    _line(voice.console, f"report    {report}")
    if voice.events is None:
        return
    paths, counts = outcome.paths, Summary.of(journal.read(outcome.paths.journal)).statuses
    end = EndEvent(
        date=now(),
        seconds=outcome.seconds,
        statuses=dict(counts),
        entries=len(outcome.entries),
        left=len(outcome.left),
        undecided=len(outcome.undecided),
        journal=str(paths.journal),
        registry=str(paths.registry),
        report=str(report),
        study=None if study_file is None else str(study_file),
    )
    Events(voice.events, "", str(paths.journal)).write(end)
