"""The journal: one append-only JSON Lines file with fsync, from which everything later is derived.

``kill -9`` at any moment loses at most the line being written: a torn last line is cut off when the file is opened
again. Only one process may write a journal at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import msgspec

from griffin_kernels import errors, registry
from griffin_kernels.texts import encodable, unmarked
from tuning.record.journal_records import JOURNAL_VERSION, End, Place, Record, Result, Run, Undecided, place_of

FILE_NAME = "journal.jsonl"

_DECODER = msgspec.json.Decoder(Record)


@dataclass(frozen=True)
class Parsed:
    """The whole lines of a journal: their records, and their text. kept: bytes up to the end of the last of them.

    torn: something follows that is no whole line, as a process that is stopped while it writes leaves it.
    """

    records: list[Record]
    lines: list[str]
    kept: int
    torn: bool


class _Header(msgspec.Struct):
    """What every version of the journal keeps: enough to refuse a later one by name."""

    kind: str = ""
    journal_version: int = 0


def read(path: Path) -> list[Record]:
    """Every record of a journal; a torn last line is left out. JournalError says what is wrong with another line."""
    return parse(read_bytes(path), path).records


def read_bytes(path: Path) -> bytes:
    """The bytes of a journal; JournalError where there are none to be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.JournalError(f"journal {path} cannot be read: {error.strerror}") from None


def parse(raw: bytes, path: Path) -> Parsed:
    """The journal in ``raw``, which was read from ``path``; JournalError names a line that is broken or too new."""
    records: list[Record] = []
    lines: list[str] = []
    kept = offset = 0
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        offset += len(line)
        if number == 1:
            line = unmarked(line)
        if not line.strip():
            continue
        if not line.endswith(b"\n"):
            return Parsed(records, lines, kept, torn=True)
        try:
            text = line.decode().strip()
            header = msgspec.json.decode(line, type=_Header)
            if header.kind == "run" and header.journal_version > JOURNAL_VERSION:
                raise errors.JournalError(
                    f"journal {path} has version {header.journal_version}, this package reads up to {JOURNAL_VERSION}; "
                    "use the griffin-kernels that wrote it, or a later one"
                )
            records.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # a torn write can end in a newline when blocks reached the disk out of order; a record that is whole and
            # unknown is no torn write
            if offset == len(raw) and not isinstance(error, msgspec.ValidationError):
                return Parsed(records, lines, kept, torn=True)
            raise errors.JournalError(
                f"journal {path}, line {number} is broken: {error}; move it away to start anew"
            ) from None
        lines.append(text)
        kept = offset
    return Parsed(records, lines, kept, torn=False)


def unfinished(records: list[Record]) -> bool:
    """True if the journal's run has begun and not ended."""
    return bool(records) and not any(isinstance(record, End) for record in records)


def first_run(records: Iterable[Record]) -> Run | None:
    """How the run began; None where a journal has lost its first line."""
    return next((record for record in records if isinstance(record, Run)), None)


def undecided(records: Sequence[Record]) -> tuple[Undecided, ...]:
    """Cases that a journal leaves undecided, by the last record of each case."""
    last: dict[Place, Result | Undecided] = {}
    for record in records:
        if isinstance(record, Result | Undecided):
            last[place_of(record.entry if isinstance(record, Result) else record)] = record
    return tuple(record for record in last.values() if isinstance(record, Undecided))


def encoded(record: Any) -> bytes:
    """A record as JSON. Names of files in it need not be UTF-8."""
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(record)))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


class Journal(contextlib.AbstractContextManager["Journal"]):
    """An open journal. ``append`` returns after the record is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open for appending, cutting off a torn last line.

        JournalError if another process has it open, OutputFolderError where it cannot be locked.
        """
        self.path = path
        try:
            self._lock = registry.acquire(path, 0, " with --out")
        except filelock.Timeout:
            raise errors.JournalError(
                f"another tune run is writing {path}; wait for it, or choose another --out"
            ) from None
        try:
            kept = parse(read_bytes(path), path).kept if path.exists() else 0
            self._file = open(path, "ab", buffering=0)  # a buffer would be written again on closing
            self._file.truncate(kept)
        except BaseException:
            self._lock.release()
            raise

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk. Where that fails nothing of it stays, and no part ever."""
        left = memoryview(encoded(record) + b"\n")
        end = os.fstat(self._file.fileno()).st_size
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            if left or isinstance(error, OSError):
                with contextlib.suppress(OSError):  # a torn line is left out by every reader, too
                    self._file.truncate(end)
            if not isinstance(error, OSError):
                raise
            raise errors.OutputFolderError(
                f"journal {self.path} cannot be written: {error.strerror}; everything before this is safe, "
                "make room and run `griffin tune --resume`"
            ) from None

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()
        finally:
            self._lock.release()


def set_aside(path: Path, records: list[Record]) -> Path:
    """Rename an old journal after its run, so that a new run starts an empty one. Returns the new name."""
    run = first_run(records)
    target = path.with_name(f"journal-{run.run_id if run else 'unnamed'}.jsonl")
    os.replace(path, target)
    return target
