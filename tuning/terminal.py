"""``griffin tune`` on a terminal: says what it does, draws progress, survives Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
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
from tuning import journal, plan, progress, study
from tuning.eta import Estimate
from tuning.events import End, Events, Interrupted, now
from tuning.plan import Options
from tuning.run import Outcome, Paths, tune
from tuning.summary import Summary, summary_table


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def describe(device: Device) -> str:
    """One line on a device."""
    unit = "cores" if device.kind == "cpu" else "units"
    cache = (
        f", last-level cache {device.last_level_cache_bytes / 2**20:.0f} MiB" if device.last_level_cache_bytes else ""
    )
    return f"{device.name} ({device.arch}, {device.units} {unit}{cache})"


def show_plan(console: Console, options: Options) -> None:
    """Print what a run would try; nothing is measured or written."""
    device = devices.detect(options.device or None)
    jobs = plan.make(options, device)
    table = Table(header_style="bold", pad_edge=False)
    for name in ("op", "case", "default"):
        table.add_column(name, overflow="fold")
    for name in ("candidates", "cannot run"):
        table.add_column(name, justify="right")
    for job in jobs:
        refused = sum(p.reason is not None for p in job.candidates)
        default = job.default.variant.name if job.default else "none"
        table.add_row(job.op.name, job.case.key, default, str(len(job.candidates) - refused), str(refused))
    _line(console, f"plan for {describe(device)}, budget {options.budget}")
    console.print(table)
    total = sum(p.reason is None for job in jobs for p in job.candidates)
    _line(console, f"{len(jobs)} cases, {total} candidates; nothing was measured")


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


def run(
    console: Console | Voice, options: Options, out: Path | None, resume: bool, command: str, prepare: str = ""
) -> Outcome | None:
    """Tune and print the table and the paths; None after Ctrl-C, when it has said how to go on.

    prepare: as ``run.tune`` takes it.
    """
    voice = console if isinstance(console, Voice) else Voice(console)
    device = devices.detect(options.device or None)
    paths = Paths.choose(out, device)
    jobs = plan.make(options, device)  # a wrong option is answered before anything else is said
    voice.say(f"tuning {describe(device)}")
    voice.say(f"journal   {paths.journal}")
    earlier = journal.read(paths.journal) if paths.journal.exists() else []

    def estimate() -> Estimate:
        return Estimate({(job.op.name, job.case.key): len(job.candidates) for job in jobs}, earlier)

    display = progress.Display(voice.console, estimate(), quiet=voice.quiet, ticking=device.kind != "cpu")
    told: list[progress.Listener] = [display]
    events = None
    if voice.events is not None:
        events = Events(voice.events, device.name, str(paths.journal), estimate())
        told.append(events)
    try:
        with _quiet_third_parties(), display:
            outcome = tune(options, paths, progress.Several(*told), command, resume, prepare)
    except KeyboardInterrupt:
        # a second Ctrl-C here would cut the sentence off
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if events is not None:
            events.write(Interrupted(_go_on(out)))
        _line(voice.console, f"\ninterrupted; nothing was published. Go on with: {_go_on(out)}")
        return None
    if outcome.entries:
        voice.console.print(summary_table(outcome.entries, voice.console.width))
    for text in Summary.of(journal.read(paths.journal)).lines():
        _line(voice.console, text)
    _line(voice.console, f"done in {progress.clock_text(outcome.seconds)}")
    if outcome.left:
        _line(
            voice.console,
            f"time is up: {len(outcome.left)} cases were not begun, from {outcome.left[0]} on; "
            f"go on with: {_go_on(out)}",
        )
    _line(voice.console, f"journal   {paths.journal}")
    if outcome.entries or not outcome.left:
        _line(voice.console, f"registry  {paths.registry}")
    return outcome


def _go_on(out: Path | None) -> str:
    """The command that goes on with a run that did not come to its end."""
    return f"griffin tune --resume{'' if out is None else f' --out {out}'}"


def run_study(console: Console | Voice, outcome: Outcome) -> Path | None:
    """Study the device that was tuned and print what came out; after Ctrl-C say that the registry stands.

    Returns the file of the study, None where it was not made.
    """
    voice = console if isinstance(console, Voice) else Voice(console)
    device = devices.detect(outcome.options.device or None)
    try:
        line = StatusLine(voice.console)
        with _quiet_third_parties():
            path, found = study.run(device, outcome, (lambda text: None) if voice.quiet else line)
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
    end = End(
        date=now(),
        seconds=outcome.seconds,
        statuses=dict(counts),
        entries=len(outcome.entries),
        left=len(outcome.left),
        journal=str(paths.journal),
        registry=str(paths.registry),
        report=str(report),
        study=None if study_file is None else str(study_file),
    )
    Events(voice.events, "", str(paths.journal)).write(end)
