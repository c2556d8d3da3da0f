"""``griffin tune`` on a terminal: plan, progress, summary, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import msgspec
from rich.console import Console

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.device import Device
from griffin_kernels.texts import now
from roofline import tables
from roofline.console import StatusLine, line, table
from roofline.units import clock_text, units_text
from tuning import run as runs
from tuning.plan.planner import Options
from tuning.plan.schedule import Clock, Estimate, Schedule
from tuning.predict import predictor
from tuning.predict.time_model import load_constants
from tuning.record import journal
from tuning.record.paths import Paths
from tuning.run import Outcome, plan, tune
from tuning.ui.events import EndEvent, Events, InterruptedEvent
from tuning.ui.progress import Display, Summary, above_lines, summary_table


def describe(device: Device) -> str:
    """One line on a device."""
    size = device.last_level_cache_bytes
    cache = f", last-level cache {size / 2**20:.0f} MiB" if size else ""
    return f"{device.name} ({device.arch}, {units_text(device.units, device.kind)}{cache})"


def show_plan(console: Console, options: Options, out: Path | None = None) -> None:
    """Print what a run would try and how long it would take; nothing is measured or written."""
    device = devices.detect(options.device or None)
    jobs, _, schedule = plan(options, Paths.choose(out, device), device)
    cases = table(["op", "case", "default"], ["candidates", "cannot run", "tries"])
    for job in jobs:
        refused = sum(p.reason is not None for p in job.candidates)
        default = job.default.variant.name if job.default else "none"
        slot, tries = schedule.slots[job.place], schedule.tries.get(job.place)
        tried = "no time" if tries is None else str(slot.certain + tries)
        cases.add_row(job.op.name, job.case.key, default, str(len(job.candidates) - refused), str(refused), tried)
    line(console, f"plan for {describe(device)}, budget {options.budget}")
    console.print(cases)
    ops = table(["op"], ["cases", "tries", "minutes"])
    for row in schedule.rows():
        ops.add_row(row.op, str(row.cases), str(row.candidates), f"{row.seconds / 60:.1f}")
    console.print(ops)
    total = sum(p.reason is None for job in jobs for p in job.candidates)
    line(console, f"{len(jobs)} cases, {total} candidates; nothing was measured")
    line(console, planned_text(schedule))


def planned_text(schedule: Schedule) -> str:
    """A sentence on the time that a run is planned to take, and on what that assumes."""
    left = f"; {schedule.left_out} cases do not fit and are left for --resume" if schedule.left_out else ""
    minutes = max(1, math.ceil(schedule.seconds / 60 - 0.1))
    took = f"{minutes} minute{'' if minutes == 1 else 's'}"
    if schedule.seconds >= 5400:
        took = f"{schedule.seconds / 3600:.1f} hours"
    return (
        f"planned to end in about {took}: {len(schedule.tries)} cases, "
        f"{schedule.candidates} candidates tried ({schedule.assumptions()}){left}"
    )


@contextlib.contextmanager
def _quiet_third_parties() -> Iterator[None]:
    """Hide deprecation warnings from inside torch and numba, and dispatch's warning of untuned ops."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, errors.UntunedWarning):
            warnings.simplefilter("ignore", kind)
        yield


@dataclass(frozen=True)
class RunOutput:
    """Where a run prints. quiet: only problems and the table. events: stream of JSON lines; None without one."""

    console: Console
    quiet: bool = False
    events: BinaryIO | None = None

    def say(self, text: str) -> None:
        """Print a line that reports no problem."""
        if not self.quiet:
            line(self.console, text)


@contextlib.contextmanager
def _handling(handler: signal.Handlers | Callable[[int, FrameType | None], Any], *numbers: int) -> Iterator[None]:
    """Handle signals so for a while. Only in the main thread, which gets the signals."""
    own = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if own}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


_interruptible = _handling(signal.default_int_handler, signal.SIGTERM)
"""Decorates what SIGTERM shall end as Ctrl-C does, with a KeyboardInterrupt."""


_undisturbed = functools.partial(_handling, signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)
"""Ignores Ctrl-C and SIGTERM while the final sentences are printed."""


def ignore_interrupts() -> None:
    """Ignore Ctrl-C and SIGTERM from now on, so that they do not break off the exit of this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@_interruptible
def run(
    output: RunOutput,
    options: Options,
    out: Path | None,
    resume: bool,
    command: str,
    prepare: str = "",
    clock: Clock = time.monotonic,
) -> Outcome | None:
    """Tune, then print the table and the paths, also after Ctrl-C; a second Ctrl-C ends it at once and returns None.

    Either way the command that resumes the run is printed. prepare, clock: as ``run.tune`` takes them.
    """
    device = devices.detect(options.device or None)
    paths = Paths.choose(out, device)
    paths.prepare(device)  # this and the next raise for a wrong option before anything is printed
    _, earlier, schedule = plan(options, paths, device)
    output.say(f"tuning {describe(device)}")
    output.say(f"journal   {paths.journal}")
    if not (resume and journal.unfinished(earlier)):
        output.say(planned_text(schedule))
    events, ticking = Events(output.events, device.name, str(paths.journal)), device.kind != "cpu"
    display = Display(output.console, Estimate(earlier), quiet=output.quiet, ticking=ticking, clock=clock, to=events)
    try:
        with _quiet_third_parties(), display:
            outcome = tune(options, paths, display, command, resume, prepare, clock)
    except KeyboardInterrupt:
        with _undisturbed():
            events.write(InterruptedEvent(resume_command(out)))
            line(output.console, f"\nstopped; the journal holds what was measured. Go on with: {resume_command(out)}")
        return None
    with _undisturbed() if outcome.interrupted else contextlib.nullcontext():
        if outcome.interrupted:
            events.write(InterruptedEvent(resume_command(out), len(outcome.entries), len(outcome.left)))
        if outcome.entries or outcome.undecided:
            output.console.print(summary_table(outcome.entries, output.console.width, outcome.undecided))
        for text in above_lines(outcome.entries):
            line(output.console, text)
        for text in Summary.of(journal.read(paths.journal)).lines():
            line(output.console, text)
        line(output.console, f"done in {clock_text(outcome.seconds)}")
        if (standing := standing_text(outcome, out)) is not None:
            line(output.console, standing)
        line(output.console, f"journal   {paths.journal}")
        if outcome.entries or not outcome.left:
            line(output.console, f"registry  {paths.registry}")
    return outcome


@_interruptible
def run_target(
    console: Console, sku: str, options: Options, out: Path | None, constants: Path | None, dry_run: bool
) -> None:
    """Tune for a GPU that is not there, then print the table and where the results are."""
    known = load_constants(constants)
    if dry_run:
        return predictor.show_target_plan(console, sku, options)
    outcome = predictor.tune_target(sku, options, out, console, constants=known)
    console.print(summary_table(outcome.entries, console.width))
    count, took = len(outcome.entries), clock_text(outcome.seconds)
    line(console, f"{count} entries in {took}; nothing was run, all are predicted")
    if outcome.entries:
        line(console, f"registry    {outcome.registry}")
    line(console, f"predictions {outcome.predictions}")


def standing_text(outcome: Outcome, out: Path | None) -> str | None:
    """A sentence on how far an incomplete run came, with the command that resumes it; None for a complete run."""
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
    return f"{why}: {decided}, {left}; go on with: {resume_command(out)}"


def resume_command(out: Path | None) -> str:
    """The command that resumes a run."""
    return shlex.join(["griffin", "tune", "--resume", *([] if out is None else ["--out", str(out)])])


def run_study(output: RunOutput, outcome: Outcome) -> Path | None:
    """Study the tuned device and print the result. After Ctrl-C there is no study; the registry is kept.

    Returns the file of the study, None where it was interrupted.
    """
    device = devices.detect(outcome.options.device or None)
    try:
        status = StatusLine(output.console)
        with _quiet_third_parties():
            path, found = runs.study(device, outcome, (lambda text: None) if output.quiet else status)
        status.clear()
    except KeyboardInterrupt:
        line(output.console, "\ninterrupted; the registry stands, the study of whole models was not made")
        return None
    if not output.quiet:
        tables.show_study(output.console, found)
    line(output.console, f"study     {path}")
    return path


def finish(output: RunOutput, outcome: Outcome, report: Path, study_file: Path | None) -> None:
    """Print the path of the report, and write the last event, with all paths."""
    line(output.console, f"report    {report}")
    paths, statuses = outcome.paths, Summary.of(journal.read(outcome.paths.journal)).statuses
    of_run = {"date": now(), "seconds": outcome.seconds, "statuses": dict(statuses)}
    of_cases = {"entries": len(outcome.entries), "left": len(outcome.left), "undecided": len(outcome.undecided)}
    files = {"journal": paths.journal, "registry": paths.registry, "report": report, "study": study_file}
    named = {name: None if path is None else str(path) for name, path in files.items()}
    Events(output.events).write(msgspec.convert(of_run | of_cases | named, EndEvent))
