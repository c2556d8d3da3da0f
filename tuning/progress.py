"""Tells a person how a run goes: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from griffin_kernels.records import Entry
from tuning.records import Candidate, Result


def seconds_text(seconds: float) -> str:
    """``1.23 ms``: three digits and a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def clock_text(seconds: float) -> str:
    """``2:05``: minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Listener(Protocol):
    """What a run reports as it goes."""

    def begin(self, total: int, already: int) -> None: ...
    def job(self, op: str, case: str) -> None: ...
    def trying(self, variant: str, config: str) -> None: ...
    def candidate(self, record: Candidate) -> None: ...
    def result(self, result: Result) -> None: ...
    def note(self, text: str) -> None: ...


class Display:
    """A Listener that draws. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.fields[what]}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            TextColumn("{task.fields[best]}"),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._progress.add_task("tune", total=None, what="", left="?", best="")
        self._began = time.monotonic()
        self._total = self._already = self._done = self._failed = 0
        self._where = ""
        self._best: float | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, total: int, already: int) -> None:
        self._total, self._already, self._done = total, already, already
        self._began = time.monotonic()
        self._progress.update(self._task, total=total, completed=already)

    def _left(self) -> str:
        fresh = self._done - self._already
        if fresh < 3:
            return "?"
        return clock_text((time.monotonic() - self._began) / fresh * (self._total - self._done))

    def job(self, op: str, case: str) -> None:
        self._where, self._best = f"{op} {case}", None
        self._progress.update(self._task, what=self._where, best="")

    def trying(self, variant: str, config: str) -> None:
        self._progress.update(self._task, what=f"{self._where} · {variant}")

    def candidate(self, record: Candidate) -> None:
        self._done += 1
        self._failed += record.status in ("wrong", "failed")
        if record.status == "ok":
            fastest = min(record.samples_s)
            self._best = fastest if self._best is None else min(self._best, fastest)
        best = "" if self._best is None else f"best {seconds_text(self._best)}"
        failed = f", {self._failed} failed" if self._failed else ""
        self._progress.update(self._task, completed=self._done, left=self._left(), best=best + failed)
        if record.status in ("wrong", "failed"):
            self.console.print(f"  {record.status}: {record.key}: {record.problem}", highlight=False, markup=False)

    def result(self, result: Result) -> None:
        entry = result.entry
        against = "" if entry.speedup is None else f", {entry.speedup:.2f}x {entry.baseline}"
        took = "" if entry.median_s is None else f" {seconds_text(entry.median_s)}"
        left = "" if self._live else f"  [{self._done}/{self._total}, left {self._left()}]"
        line = f"{entry.op} {entry.case.case(entry.op).key}: {entry.variant}{took}{against}{left}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def summary_table(entries: Sequence[Entry]) -> Table:
    """op, case, winner, time, speedup over the best baseline with its interval, share of the memory roof."""
    table = Table(title=None, header_style="bold", pad_edge=False)
    for name in ("op", "case", "winner"):
        table.add_column(name, overflow="fold")
    for name in ("time", "vs best baseline", "memory roof"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        speedup = "no baseline"
        if entry.speedup is not None and entry.speedup_interval is not None:
            low, high = entry.speedup_interval
            speedup = f"{entry.speedup:.2f}x ({low:.2f} to {high:.2f})"
        config = ",".join(f"{k}={v}" for k, v in entry.config.items())
        table.add_row(
            entry.op,
            entry.case.case(entry.op).key,
            f"{entry.variant} {config}".strip(),
            "" if entry.median_s is None else seconds_text(entry.median_s),
            speedup,
            "" if entry.share_of_bound is None else f"{entry.share_of_bound:.0%}",
        )
    return table
