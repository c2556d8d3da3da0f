"""What a finished run says below its table: candidates by status, the noise floor, what disturbed it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from tuning.conditions import disturbed
from tuning.progress import noise_text
from tuning.records import BAD, Candidate, Noise, Race, Record, Status

STATUSES: tuple[Status, ...] = get_args(Status)
"""Every status of a candidate, from best to worst."""


@dataclass(frozen=True)
class Summary:
    """Facts of a run, from its journal. statuses: candidates, those that occur. disturbed: races by what it was."""

    statuses: Mapping[str, int]
    noise: Noise | None
    disturbed: Mapping[str, str]
    races: int

    @classmethod
    def of(cls, records: Sequence[Record]) -> Summary:
        """A candidate or race that a journal has twice, after a resume or a repetition, counts as it was last."""
        last = {record.key: record.status for record in records if isinstance(record, Candidate)}
        counts = Counter(last.values())
        races = {(r.op, r.case.case(r.op).key): r for r in records if isinstance(r, Race)}
        words = {f"{op} {case}": disturbed(race.before, race.after) for (op, case), race in races.items()}
        return cls(
            statuses={name: counts[name] for name in STATUSES if counts[name]},
            noise=next((r for r in reversed(records) if isinstance(r, Noise)), None),
            disturbed={race: text for race, text in words.items() if text},
            races=len(races),
        )

    @property
    def failed(self) -> int:
        return sum(self.statuses.get(name, 0) for name in BAD)

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
        return found
