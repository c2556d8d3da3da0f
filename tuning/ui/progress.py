"""The progress display of a run, and its summary.

The display is live on a terminal; elsewhere it is a line for each case and each failure. The summary has the table of
winners, candidates by status, the noise floor and disturbances.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from griffin_kernels.records import Entry
from griffin_kernels.texts import now
from roofline import shares, stats
from roofline.console import line, table
from roofline.units import clock_text, seconds_text
from tuning.measure.conditions import disturbed, slowed
from tuning.plan.schedule import Clock, Estimate
from tuning.record.journal import undecided
from tuning.record.journal_records import (
    BAD,
    Candidate,
    CeilingRecord,
    Noise,
    Place,
    Race,
    Record,
    Result,
    Status,
    Undecided,
)
from tuning.ui import events


def result_text(entry: Entry) -> str:
    """``linear_scan B2-T37-D24-float32: eager.chunked chunk=8 1.2 ms, 3.10x eager.loop (2.9 to 3.3), tied with 2``."""
    config = " ".join(f"{name}={value}" for name, value in entry.config.items())
    took = entry.median_s if entry.median_s is not None else entry.predicted_s
    parts = [" ".join(filter(None, (entry.variant, config, seconds_text(took) if took is not None else "")))]
    if entry.status == "predicted":
        parts.append("predicted, not measured")
    if entry.speedup is not None:
        interval = "" if entry.speedup_interval is None else " ({:.2f} to {:.2f})".format(*entry.speedup_interval)
        parts.append(f"{entry.speedup:.2f}x {entry.baseline}{interval}")
    if entry.ties:
        parts.append(f"tied with {len(entry.ties)}")
    return f"{entry.op} {entry.case.key}: {', '.join(parts)}"


def undecided_text(record: Undecided) -> str:
    """``linear_scan B2-T37-D24-float32 is undecided: why; repeat with: griffin tune ...``."""
    return f"{record.op} {record.case.key} is undecided: {record.why}; repeat with: {record.command}"


@dataclass
class LaneStatus:
    """The state of one device. best_s: the fastest candidate of the case so far. baseline_s: its fastest baseline."""

    op: str = ""
    case: str = ""
    trying: str = ""
    best_s: float | None = None
    baseline_s: float | None = None
    baseline: str = ""

    def take(self, record: Candidate) -> None:
        if record.status != "ok" or not record.samples_s:
            return
        took = stats.median(record.samples_s)
        if not record.baseline:
            self.best_s = took if self.best_s is None else min(self.best_s, took)
        elif self.baseline_s is None or took < self.baseline_s:
            self.baseline_s, self.baseline = took, record.variant

    @property
    def speedup(self) -> float | None:
        """The best so far over the best baseline so far."""
        return self.baseline_s / self.best_s if self.best_s and self.baseline_s else None

    def text(self) -> str:
        """``linear_scan B1-T64-D8-float32 · eager.chunked chunk=8 · best 1.2 ms, 3.1x eager.loop``."""
        best = "" if self.best_s is None else f"best {seconds_text(self.best_s)}"
        if self.speedup is not None:
            best += f", {self.speedup:.2f}x {self.baseline}"
        return " · ".join(filter(None, (f"{self.op} {self.case}", self.trying, best)))


class Display:
    """A Listener that counts, draws, prints and writes events. Use as a context manager.

    It counts candidates that are done, failed and still to come, and the time for them. ``estimate`` keeps the
    candidates to come by case, so that no more are done than there are in all.
    to: where events go, if anywhere. quiet: print only problems. ticking: a thread draws the clock twice a second.
    Without it nothing is drawn between events, so that the display takes no time of a CPU that is being measured.
    """

    def __init__(
        self, console: Console, estimate: Estimate | None = None, *, quiet: bool = False, ticking: bool = False,
        clock: Clock = time.monotonic, to: events.Events | None = None,
    ) -> None:  # fmt: skip
        self.console, self.estimate, self.quiet, self.clock = console, estimate or Estimate(), quiet, clock
        self.events = to or events.Events()
        self.done = self.failed = 0
        self.lanes: dict[str, LaneStatus] = {}
        self.began = self._seen = clock()
        self._left: float | None = None
        self._begun = False
        self._is_live = console.is_terminal and not quiet
        self._live = Live(
            console=console, auto_refresh=ticking, refresh_per_second=2, transient=True, get_renderable=self.picture,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Candidates that are done or will come, at most."""
        return self.done + self.estimate.coming

    @property
    def left(self) -> float | None:
        """Seconds left: the estimate at the last event, less what has passed since; None where there is no estimate."""
        return None if self._left is None else max(0.0, self._left - (self.clock() - self._seen))

    @property
    def left_text(self) -> str:
        return "?" if self.left is None else clock_text(self.left)

    def __enter__(self) -> Display:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_live:
            self._live.stop()

    def picture(self) -> RenderableType:
        """A progress bar with the figures of the run, and a line for each device."""
        figures = [f"{self.done}/{self.total}"]
        if self.failed:
            figures.append(f"{self.failed} failed")
        figures += [clock_text(self.clock() - self.began), f"left {self.left_text}"]
        head = Table.grid(padding=(0, 1))
        head.add_row(ProgressBar(total=max(self.total, 1), completed=self.done, width=24), Text(" · ".join(figures)))
        rows = [
            Text(f"{name + '  ' if len(self.lanes) > 1 else ''}{lane.text()}", no_wrap=True, overflow="ellipsis")
            for name, lane in sorted(self.lanes.items())
            if lane.op
        ]
        return Group(head, *rows)

    def _refresh(self) -> None:
        if self._is_live:
            self._live.refresh()

    def _count(self) -> None:
        self._seen = self.clock()
        self._left = self.estimate.left(self._seen - self.began)
        self._refresh()

    def begin(self, already: int) -> None:
        self._begun, self.done, self.began = True, already, self.clock()
        self._count()
        self.events.write(events.BeginEvent(now(), self.events.device, self.events.journal, self.total, already))
        if already and not self.quiet:
            line(self.console, f"{already} of {self.total} candidates are in the journal already")

    def expect(self, coming: Mapping[Place, int]) -> None:
        self.estimate.expect(coming)
        self._count()

    def closed(self, op: str, case: str) -> None:
        self.estimate.closed((op, case))
        self._count()

    def job(self, op: str, case: str, *, lane: str = "") -> None:
        self.lanes[lane] = LaneStatus(op, case)
        self._refresh()
        self.events.write(events.JobEvent(op, case, lane))

    def trying(self, variant: str, config: str, *, lane: str = "") -> None:
        self.lanes.setdefault(lane, LaneStatus()).trying = f"{variant} {config}".strip()
        self._refresh()

    def candidate(self, record: Candidate, *, lane: str = "") -> None:
        self.done += 1
        self.failed += record.status in BAD
        at = self.lanes.setdefault(lane, LaneStatus())
        at.take(record)
        self.estimate.candidate(record)
        self._count()
        median = stats.median(record.samples_s) if record.samples_s else None
        of_case = {"case": record.case.key, "median_s": median, "best_s": at.best_s, "speedup": at.speedup}
        of_run = {"done": self.done, "total": self.total, "failed": self.failed, "left_s": self.left, "lane": lane}
        self.events.write(msgspec.convert(msgspec.structs.asdict(record) | of_case | of_run, events.CandidateEvent))
        if record.status in BAD:
            line(self.console, f"  {record.status}: {record.key}: {record.problem}")

    def result(self, result: Result, *, lane: str = "") -> None:
        self.closed(result.entry.op, result.entry.case.key)
        self.events.write(events.ResultEvent(result.entry, lane, self.left))
        if self.quiet:
            return
        failed = f", {self.failed} failed" if self.failed else ""
        on = f"{lane}  " if len(self.lanes) > 1 else ""
        where = "" if self._is_live else f"  [{self.done}/{self.total}, left {self.left_text}{failed}]"
        line(self.console, f"{on}{result_text(result.entry)}{where}")

    def undecided(self, record: Undecided, *, lane: str = "") -> None:
        self.closed(record.op, record.case.key)
        self.events.write(events.UndecidedEvent(record.op, record.case.key, record.why, record.command, lane))
        line(self.console, undecided_text(record))

    def noise(self, record: Noise) -> None:
        self.events.write(msgspec.convert(record, events.NoiseEvent, from_attributes=True))
        if not self.quiet:
            line(self.console, noise_text(record))

    def worker(self, text: str) -> None:
        self.events.write(events.WorkerEvent(text))
        line(self.console, f"  {' '.join(text.split())}")

    def note(self, text: str) -> None:
        self.events.write(events.NoteEvent(text))
        # what is said before the work begins is preparation; later it is about something that went wrong
        if self._begun or not self.quiet:
            line(self.console, text)


def noise_text(record: Noise) -> str:
    """``noise floor 1.8% (A/A of torch.add on 96 MiB, 41 rounds)``."""
    return f"noise floor {record.floor:.1%} (A/A of {record.what}, {record.rounds} rounds)"


STATUSES: tuple[Status, ...] = get_args(Status)
"""Every status of a candidate, from best to worst."""


@dataclass(frozen=True)
class Summary:
    """Facts of a run, from its journal. statuses: candidates, those that occur. disturbed: races by what it was.

    undecided: cases for which nothing was published. slowed: races beside which the device was slower than usual.
    """

    statuses: Mapping[str, int]
    noise: Noise | None
    disturbed: Mapping[str, str]
    races: int
    undecided: tuple[Undecided, ...] = ()
    slowed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Summary:
        """The facts of a journal. Of a candidate or race that was repeated the last record counts."""
        last = {record.key: record.status for record in records if isinstance(record, Candidate)}
        counts = Counter(last.values())
        races = {(r.op, r.case.key): r for r in records if isinstance(r, Race)}
        words = {f"{op} {case}": disturbed(race.before, race.after) for (op, case), race in races.items()}
        ceilings = {r.name: r for r in records if isinstance(r, CeilingRecord)}
        behind = {f"{op} {case}": slowed(race, ceilings) for (op, case), race in races.items()}
        return cls(
            statuses={name: counts[name] for name in STATUSES if counts[name]},
            noise=next((r for r in reversed(records) if isinstance(r, Noise)), None),
            disturbed={race: text for race, text in words.items() if text},
            races=len(races),
            undecided=undecided(records),
            slowed={race: text for race, text in behind.items() if text},
        )

    def lines(self) -> list[str]:
        """What to print, a line each."""
        total = sum(self.statuses.values())
        counts = ", ".join(f"{count} {name}" for name, count in self.statuses.items())
        found = [f"{total} candidates: {counts}" if counts else "no candidates"]
        if self.noise is not None:
            found.append(noise_text(self.noise))
        if self.disturbed:
            race, words = next(iter(self.disturbed.items()))
            found.append(f"{len(self.disturbed)} of {self.races} races were disturbed; {race}: {words}")
        if self.slowed:
            race, words = next(iter(self.slowed.items()))
            many = f"{len(self.slowed)} of {self.races} races"
            found.append(f"the device was slower than usual in {many}; {race}: {words}")
        return [*found, *map(undecided_text, self.undecided)]


WIDE = 120
"""Columns from which the final table has a line for each entry; below, names and figures share fewer columns."""


def summary_table(entries: Sequence[Entry], width: int = WIDE, open_cases: Sequence[Undecided] = ()) -> Table:
    """Op, case, winner, time, speedup over the best baseline with its interval, ties, share of the binding ceiling.

    Shares above 100% are marked; ``above_lines`` says why they are.
    open_cases: those for which nothing was published; they come last.
    """
    wide = width >= WIDE
    if wide:
        names, figures = ["op", "case", "winner"], ["time", "vs best baseline", "tied with", "of its ceiling"]
    else:
        names, figures = ["op, case, winner"], ["time", "vs baseline", "tied", "of ceiling"]
    drawn = table(names, figures, box=box.SIMPLE_HEAD, show_edge=False)
    before = ""
    for entry in entries:
        config = ",".join(f"{k}={v}" for k, v in entry.config.items())
        case, winner = entry.case.key, f"{entry.variant} {config}".strip()
        names = ["" if entry.op == before else entry.op, case, winner]
        if not wide:
            names = ["\n".join([f"{entry.op} {case}", f"  {entry.variant}", *([f"  {config}"] if config else [])])]
        took = entry.predicted_s if entry.status == "predicted" else entry.median_s
        share = shares.share_text(entry.share_of_bound, entry.bound) + ("!" if above(entry) else "")
        drawn.add_row(
            *map(Text, names),
            "" if took is None else seconds_text(took),
            _speedup_cell(entry, wide),
            str(len(entry.ties)) if entry.ties else "",
            share if wide else share.replace(" ", "\n", 1),
        )
        before = entry.op
    for record in open_cases:
        case = record.case.key
        why = "undecided" if record.noise_floor is None else f"undecided: noise floor {record.noise_floor:.0%}"
        names = [record.op, case, why] if wide else [f"{record.op} {case}\n  {why}"]
        drawn.add_row(*map(Text, names), "", "not published", "", "")
    return drawn


def above(entry: Entry) -> str | None:
    """Why an entry is faster than its ceiling; None if it is not."""
    return shares.why_above(entry.share_of_bound, entry.bound, entry.above_bound)


def above_lines(entries: Sequence[Entry]) -> list[str]:
    """A line for each entry that is faster than its ceiling, as ``shares.above_line``."""
    told = ((e.op, e.case.key, e.share_of_bound, e.bound, e.above_bound) for e in entries)
    return [text for each in told if (text := shares.above_line(*each)) is not None]


def _speedup_cell(entry: Entry, wide: bool) -> str:
    if entry.status == "predicted":
        return "predicted only"
    if entry.speedup is None or entry.speedup_interval is None:
        return "no baseline"
    low, high = entry.speedup_interval
    interval = f"{low:.2f} to {high:.2f}"
    return f"{entry.speedup:.2f}x" + (f" ({interval})" if wide else f"\n{interval}")
