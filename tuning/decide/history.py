"""What an earlier run left in its journal, for the run that resumes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tuning.plan.budget import UNQUIET
from tuning.plan.planner import Job
from tuning.record.journal_records import Candidate, CeilingRecord, Noise, Place, Record, Result, Run, place_of


class History:
    """What a journal already holds, for resuming: candidates, races and results whose source has not changed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.run = next((r for r in records if isinstance(r, Run)), None)
        self.candidates = {r.key: r for r in records if isinstance(r, Candidate)}
        self.results = {place_of(r.entry): r for r in records if isinstance(r, Result)}
        self.ceilings = {r.name: r for r in records if isinstance(r, CeilingRecord)}
        self.noise = next((r for r in records if isinstance(r, Noise)), None)
        self._tried: defaultdict[Place, list[str]] = defaultdict(list)
        for key, record in self.candidates.items():
            self._tried[place_of(record)].append(key)

    def tried(self, job: Job) -> list[Candidate]:
        """The candidates of a case."""
        return [self.candidates[key] for key in self._tried[job.place]]

    def decided(self, job: Job) -> Result | None:
        """The recorded decision on a case, if it may still be published; None otherwise.

        It may where the sources of all candidates are unchanged, every baseline was tried, the winner passed every
        check, and the noise of its race is within ``UNQUIET``.
        """
        result = self.results.get(job.place)
        if result is None or (result.entry.noise_floor or 0.0) > UNQUIET:
            return None
        now = {p.variant.name: p.variant.source_hash for p in job.candidates}
        tried = self.tried(job)
        winner = self.candidates.get(result.winner_key)
        same = all(now.get(record.variant) == record.source_hash for record in tried)
        known = {record.variant for record in tried}
        every = all(p.variant.name in known for p in job.candidates if p.reason is None and p.variant.baseline)
        return result if same and every and winner is not None and winner.status == "ok" else None
