"""Reads a journal, a registry and a roofline study for a report, and refuses what cannot be shown. Never writes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from griffin_kernels.errors import RegistryError, ReportError
from griffin_kernels.records import RegistryFile
from griffin_kernels.registry import decode
from griffin_kernels.texts import unmarked
from roofline.study_records import Study, read
from tuning.record.journal import parse, read_bytes, undecided
from tuning.record.journal_records import Candidate, CeilingRecord, End, Race, Record, Result, Run, Undecided

R = TypeVar("R")


@dataclass(frozen=True)
class SourceFile:
    """A file that a report was made from."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class JournalFile:
    """The records of one journal in the order written. lines: the same as raw JSON, for embedding.

    torn: the last line is incomplete, as a process that was stopped while writing leaves it; it is left out.
    """

    source: SourceFile
    records: tuple[Record, ...]
    lines: tuple[str, ...]
    torn: bool

    def of(self, kind: type[R]) -> list[R]:
        """Records of one class, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def run(self) -> Run:
        """The run as last started or resumed."""
        return self.of(Run)[-1]

    @property
    def starts(self) -> list[Run]:
        """The start of the run and every resume."""
        return self.of(Run)

    @property
    def end(self) -> End | None:
        """The end of the last run; None while it is unfinished."""
        last = next((record for record in reversed(self.records) if isinstance(record, End | Run)), None)
        return last if isinstance(last, End) else None

    @property
    def candidates(self) -> list[Candidate]:
        """One record a key; of a candidate that was run again after a resume, the last."""
        return list({candidate.key: candidate for candidate in self.of(Candidate)}.values())

    @property
    def ceilings(self) -> list[CeilingRecord]:
        """One record a name, the last."""
        return list({ceiling.name: ceiling for ceiling in self.of(CeilingRecord)}.values())

    @property
    def results(self) -> dict[tuple[str, str], Result]:
        """The last decision by (op, case key), where nothing was said of the case since."""
        found = {(r.entry.op, r.entry.case.key): r for r in self.of(Result)}
        left = self.undecided
        return {place: result for place, result in found.items() if place not in left}

    @property
    def undecided(self) -> dict[tuple[str, str], Undecided]:
        """Cases for which nothing was published in the end, by (op, case key)."""
        return {(r.op, r.case.key): r for r in undecided(self.records)}

    @property
    def races(self) -> dict[tuple[str, str], Race]:
        """The last race by (op, case key)."""
        return {(r.op, r.case.key): r for r in self.of(Race)}


def source(path: Path, data: bytes) -> SourceFile:
    """A file by its name, size and hash."""
    return SourceFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def load(path: Path) -> JournalFile:
    """The journal at ``path``. JournalError where it cannot be read, ReportError where there is nothing to report."""
    data = read_bytes(path)
    found = parse(data, path)
    if not found.records:
        problem = "holds no complete record" if found.torn else "is empty"
        raise ReportError(f"the journal {path} {problem}; nothing has been measured yet")
    if not isinstance(found.records[0], Run):
        raise ReportError(f"{path} does not begin with a run record; it is not a journal, or its start was cut off")
    for race in (r for r in found.records if isinstance(r, Race)):
        if any(len(row) != len(race.keys) for row in race.rounds_s):
            found_in = f"{path}: a race of {race.op}"
            raise ReportError(f"{found_in} has rounds that do not match its {len(race.keys)} finalists")
    return JournalFile(source(path, data), tuple(found.records), tuple(found.lines), found.torn)


def load_registry(path: Path) -> tuple[SourceFile, RegistryFile, str]:
    """The registry at ``path``, and its text. RegistryError where it cannot be used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"registry {path} cannot be read: {error.strerror}") from None
    return source(path, data), decode(data, path), unmarked(data).decode()


def load_study(path: Path) -> tuple[SourceFile, Study, str]:
    """The study at ``path`` and its JSON on one line. Raises ReportError where it cannot be used."""
    study = read(path)
    problem = next(_problems(study), None)
    if problem is not None:
        raise ReportError(f"{path} cannot be shown: {problem}; make it again")
    return source(path, path.read_bytes()), study, msgspec.json.encode(study).decode()


def _problems(study: Study) -> Iterator[str]:
    """What no study that was measured holds."""
    for kernel in study.kernels:
        if kernel.bound not in kernel.floors_s:
            yield f"kernel {kernel.op} {kernel.case} is bound by {kernel.bound!r}, which is none of its floors"
        if not all(map(_positive, (kernel.measured_s, kernel.share, *kernel.floors_s.values()))):
            yield f"kernel {kernel.op} {kernel.case} has a time that is not above 0"
    for row in study.fusion:
        if not all(map(_positive, (row.fused_bytes, row.unfused_bytes, row.fused_s, row.unfused_s))):
            yield f"fusion of {row.what} {row.case} has a size or time that is not above 0"
    for page in study.pages:
        for found in page.passes:
            name = f"{found.model}, {found.phase} at batch {found.batch} and {found.seq} tokens, on {page.device}"
            if not all(map(_positive, (found.floor_s, found.predicted_s, found.tokens_per_s))):
                yield f"{name} has a time or rate that is not above 0"
            if found.measured is not None:
                if len(found.measured.parts_s) != len(found.parts):
                    yield f"{name} has {len(found.parts)} parts, {len(found.measured.parts_s)} of them timed"
                if not _positive(found.measured.median_s):
                    yield f"{name} has a measured time that is not above 0"
        if not all(_positive(point.predicted_s) and _positive(point.floor_s) for point in page.grid):
            yield f"the grid of {page.device} has a time that is not above 0"


def _positive(value: float) -> bool:
    return 0 < value < math.inf
