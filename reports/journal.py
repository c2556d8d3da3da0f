"""Reads a journal, and a registry, for a report. Never writes: an interrupted journal is reported as it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from griffin_kernels.errors import RegistryError, ReportError
from griffin_kernels.records import RegistryFile
from griffin_kernels.registry import decode
from tuning.records import JOURNAL_VERSION, Candidate, Ceiling, End, Race, Record, Result, Run

R = TypeVar("R")


class _Header(msgspec.Struct):
    """What every version of the journal keeps: enough to refuse a later one by name."""

    kind: str = ""
    journal_version: int = 0


@dataclass(frozen=True)
class Source:
    """A file that a report was made from."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Journal:
    """The records of one journal in the order written. lines: the same as raw JSON, for embedding.

    torn: the last line is incomplete, as a process that was stopped while writing leaves it; it is left out.
    """

    source: Source
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
        for record in reversed(self.records):
            if isinstance(record, End | Run):
                return record if isinstance(record, End) else None
        return None

    @property
    def candidates(self) -> list[Candidate]:
        """One record a key; of a candidate that was run again after a resume, the last."""
        return list({candidate.key: candidate for candidate in self.of(Candidate)}.values())

    @property
    def ceilings(self) -> list[Ceiling]:
        """One record a name, the last."""
        return list({ceiling.name: ceiling for ceiling in self.of(Ceiling)}.values())

    @property
    def results(self) -> dict[tuple[str, str], Result]:
        """The last decision by (op, case key)."""
        return {(r.entry.op, r.entry.case.case(r.entry.op).key): r for r in self.of(Result)}

    @property
    def races(self) -> dict[tuple[str, str], Race]:
        """The last race by (op, case key)."""
        return {(r.op, r.case.case(r.op).key): r for r in self.of(Race)}


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ReportError(f"no {what} at {path}") from None
    except OSError as error:
        raise ReportError(f"cannot read the {what} {path}: {error.strerror or error}") from error


def _source(path: Path, data: bytes) -> Source:
    return Source(path.name, hashlib.sha256(data).hexdigest(), len(data))


def _check_version(line: bytes, path: Path, number: int) -> None:
    header = msgspec.json.decode(line, type=_Header)
    if header.kind == "run" and header.journal_version > JOURNAL_VERSION:
        raise ReportError(
            f"{path} line {number}: journal version {header.journal_version} is later than this program's "
            f"{JOURNAL_VERSION}; use the version of griffin-kernels that wrote it, or a later one"
        )


def load(path: Path) -> Journal:
    """The journal at ``path``. Raises ReportError where it is missing, empty, broken, or of a later version."""
    data = _read(path, "journal")
    decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
    *whole, rest = data.split(b"\n")
    numbered = [(number, line) for number, line in enumerate(whole, 1) if line.strip()]
    if not numbered and not rest.strip():
        raise ReportError(f"the journal {path} is empty; nothing has been measured yet")
    records: list[Record] = []
    lines: list[str] = []
    torn = bool(rest.strip())
    for number, line in numbered:
        try:
            text = line.decode()
            _check_version(line, path, number)
            records.append(decoder.decode(line))
            lines.append(text)
        except msgspec.ValidationError as error:
            raise ReportError(f"{path} line {number} is not a journal record: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number != numbered[-1][0]:
                raise ReportError(f"{path} line {number} is not valid JSON: {error}") from error
            torn = True
    if not records:
        raise ReportError(f"the journal {path} holds no complete record; nothing has been measured yet")
    if not isinstance(records[0], Run):
        raise ReportError(f"{path} does not begin with a run record; it is not a journal, or its start was cut off")
    for race in (r for r in records if isinstance(r, Race)):
        if any(len(row) != len(race.keys) for row in race.rounds_s):
            raise ReportError(
                f"{path}: a race of {race.op} has rounds that do not match its {len(race.keys)} finalists"
            )
    return Journal(_source(path, data), tuple(records), tuple(lines), torn)


def load_registry(path: Path) -> tuple[Source, RegistryFile, str]:
    """The registry at ``path``, and its text. Raises ReportError where it cannot be used."""
    data = _read(path, "registry")
    try:
        return _source(path, data), decode(data, path), data.decode()
    except RegistryError as error:
        raise ReportError(str(error)) from error
