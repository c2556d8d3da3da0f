"""``griffin tune`` on a terminal: says what it does, draws progress, survives Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.device import Device
from roofline import tables
from roofline.console import StatusLine
from tuning import plan, progress, study
from tuning.plan import Options
from tuning.run import Outcome, Paths, tune


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


def run(console: Console, options: Options, out: Path | None, resume: bool, command: str) -> Outcome | None:
    """Tune and print the table and the paths; None after Ctrl-C, when it has said how to go on."""
    device = devices.detect(options.device or None)
    paths = Paths.choose(out, device)
    plan.make(options, device)  # a wrong option is answered before anything else is said
    _line(console, f"tuning {describe(device)}")
    _line(console, f"journal   {paths.journal}")
    try:
        with _quiet_third_parties(), progress.Display(console) as display:
            outcome = tune(options, paths, display, command, resume)
    except KeyboardInterrupt:
        # a second Ctrl-C here would cut the sentence off
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        flag = f" --out {out}" if out is not None else ""
        _line(console, f"\ninterrupted; nothing was published. Go on with: griffin tune --resume{flag}")
        return None
    console.print(progress.summary_table(outcome.entries))
    _line(console, f"done in {progress.clock_text(outcome.seconds)}")
    _line(console, f"registry  {paths.registry}")
    return outcome


def run_study(console: Console, options: Options, outcome: Outcome) -> None:
    """Study the device that was tuned and print what came out; after Ctrl-C say that the registry stands."""
    device = devices.detect(options.device or None)
    try:
        line = StatusLine(console)
        with _quiet_third_parties():
            path, found = study.run(device, options, outcome, line)
        line.clear()
    except KeyboardInterrupt:
        _line(console, "\ninterrupted; the registry stands, the study of whole models was not made")
        return
    tables.show_study(console, found)
    _line(console, f"study     {path}")
