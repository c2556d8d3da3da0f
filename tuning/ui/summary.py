"""The summary of a run: the table of winners, candidates by status, the noise floor, disturbances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from rich import box
from rich.table import Table
from rich.text import Text

from griffin_kernels.records import Entry
from roofline.console import table
from roofline.units import seconds_text
from tuning.measure.conditions import disturbed
from tuning.record.journal_records import Candidate, Noise, Place, Race, Record, Result, Status, Undecided, place_of
from tuning.ui.progress import noise_text, undecided_text

STATUSES: tuple[Status, ...] = get_args(Status)
"""Every status of a candidate, from best to worst."""


@dataclass(frozen=True)
class Summary:
    """Facts of a run, from its journal. statuses: candidates, those that occur. disturbed: races by what it was.

    undecided: cases for which nothing was published.
    """

    statuses: Mapping[str, int]
    noise: Noise | None
    disturbed: Mapping[str, str]
    races: int
    undecided: tuple[Undecided, ...] = ()

    @classmethod
    def of(cls, records: Sequence[Record]) -> Summary:
        """The facts of a journal. Of a candidate or race that was repeated the last record counts."""
        last = {record.key: record.status for record in records if isinstance(record, Candidate)}
        counts = Counter(last.values())
        races = {place_of(r): r for r in records if isinstance(r, Race)}
        words = {f"{op} {case}": disturbed(race.before, race.after) for (op, case), race in races.items()}
        return cls(
            statuses={name: counts[name] for name in STATUSES if counts[name]},
            noise=next((r for r in reversed(records) if isinstance(r, Noise)), None),
            disturbed={race: text for race, text in words.items() if text},
            races=len(races),
            undecided=undecided(records),
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
        return [*found, *map(undecided_text, self.undecided)]


def undecided(records: Sequence[Record]) -> tuple[Undecided, ...]:
    """Cases that a journal leaves undecided, by the last record of each case."""
    last: dict[Place, Result | Undecided] = {}
    for record in records:
        if isinstance(record, Result | Undecided):
            last[place_of(record.entry if isinstance(record, Result) else record)] = record
    return tuple(record for record in last.values() if isinstance(record, Undecided))


WIDE = 120
"""Columns from which the final table has a line for each entry; below, names and figures share fewer columns."""


def summary_table(entries: Sequence[Entry], width: int = WIDE, open_cases: Sequence[Undecided] = ()) -> Table:
    """Op, case, winner, time, speedup over the best baseline with its interval, ties, share of the roof.

    open_cases: those for which nothing was published; they come last.
    """
    wide = width >= WIDE
    if wide:
        names, figures = ["op", "case", "winner"], ["time", "vs best baseline", "tied with", "of roof"]
    else:
        names, figures = ["op, case, winner"], ["time", "vs baseline", "tied", "of roof"]
    drawn = table(names, figures, box=box.SIMPLE_HEAD, show_edge=False)
    before = ""
    for entry in entries:
        config = ",".join(f"{k}={v}" for k, v in entry.config.items())
        case, winner = entry.case.key, f"{entry.variant} {config}".strip()
        names = ["" if entry.op == before else entry.op, case, winner]
        if not wide:
            names = ["\n".join([f"{entry.op} {case}", f"  {entry.variant}", *([f"  {config}"] if config else [])])]
        took = entry.predicted_s if entry.status == "predicted" else entry.median_s
        roof = "" if entry.share_of_bound is None else f"{entry.share_of_bound:.0%}"
        drawn.add_row(
            *map(Text, names),
            "" if took is None else seconds_text(took),
            _speedup_cell(entry, wide),
            str(len(entry.ties)) if entry.ties else "",
            f"{roof} {entry.bound or ''}".strip() if wide else roof,
        )
        before = entry.op
    for record in open_cases:
        case = record.case.key
        why = "undecided" if record.noise_floor is None else f"undecided: noise floor {record.noise_floor:.0%}"
        names = [record.op, case, why] if wide else [f"{record.op} {case}\n  {why}"]
        drawn.add_row(*map(Text, names), "", "not published", "", "")
    return drawn


def _speedup_cell(entry: Entry, wide: bool) -> str:
    if entry.status == "predicted":
        return "predicted only"
    if entry.speedup is None or entry.speedup_interval is None:
        return "no baseline"
    low, high = entry.speedup_interval
    interval = f"{low:.2f} to {high:.2f}"
    return f"{entry.speedup:.2f}x" + (f" ({interval})" if wide else f"\n{interval}")
