"""The event stream of a run for programs: JSON lines on standard output, one event a line, and nothing else.

Every line has ``event``; the classes below are the format. Times are seconds; ``date`` is UTC. The last line of a
finished run is ``end``; an interrupted run ends with ``interrupted``, a failed one with an error on standard error and
exit code 2.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from griffin_kernels.records import Entry
from tuning.record import journal_records
from tuning.record.journal import encoded


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=lambda name: name.removesuffix("Event").lower()):
    """What the classes below are."""


class BeginEvent(Event, frozen=True):
    """The run begins. total: candidates, at most. already: candidates in the journal of an interrupted run."""

    date: str
    device: str
    journal: str
    total: int
    already: int


class JobEvent(Event, frozen=True):
    """A case is begun. lane: the device that it runs on."""

    op: str
    case: str
    lane: str


class CandidateEvent(Event, frozen=True):
    """A candidate is finished; see ``journal_records.Candidate``.

    best_s: of the case so far. speedup: of that over the best baseline so far.
    done, total, failed: candidates of the run. left_s: an estimate.
    """

    key: str
    op: str
    case: str
    variant: str
    config: dict[str, object]
    baseline: bool
    status: journal_records.Status
    stage: str
    problem: str | None
    median_s: float | None
    seconds_spent: float
    lane: str
    best_s: float | None
    speedup: float | None
    done: int
    total: int
    failed: int
    left_s: float | None


class ResultEvent(Event, frozen=True):
    """A case is decided: the entry that the registry gets."""

    entry: Entry
    lane: str
    left_s: float | None


class NoiseEvent(Event, frozen=True):
    """The A/A test; see ``journal_records.Noise``."""

    what: str
    rounds: int
    low: float
    high: float
    floor: float


class WorkerEvent(Event, frozen=True):
    """A worker process was lost or replaced."""

    text: str


class NoteEvent(Event, frozen=True):
    """A message for a person."""

    text: str


class UndecidedEvent(Event, frozen=True):
    """Nothing is published for a case; see ``journal_records.Undecided``."""

    op: str
    case: str
    why: str
    command: str
    lane: str


class InterruptedEvent(Event, frozen=True):
    """The run was stopped by a signal. entries: cases published. left: cases not decided. resume: the command."""

    resume: str
    entries: int = 0
    left: int = 0


class EndEvent(Event, frozen=True):
    """The run is finished. statuses: candidates by status. study: a path; None where no study was made.

    left: cases that there was no time for. undecided: cases for which nothing could be published.
    """

    date: str
    seconds: float
    statuses: dict[str, int]
    entries: int
    journal: str
    registry: str
    report: str
    study: str | None
    left: int = 0
    undecided: int = 0


class Events:
    """Writes events to a stream; without one they are dropped. device, journal: what a BeginEvent names."""

    def __init__(self, stream: BinaryIO | None = None, device: str = "", journal: str = "") -> None:
        self._stream, self.device, self.journal = stream, device, journal
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """One line. Once nobody reads any more the rest is dropped, and the run goes on."""
        with self._lock:
            if self._stream is None:
                return
            try:
                self._stream.write(encoded(event) + b"\n")
                self._stream.flush()
            except OSError as error:
                self._stream = None
                print(f"note: events cannot be written any more: {error.strerror}; the run goes on", file=sys.stderr)


@contextlib.contextmanager
def own_output() -> Iterator[BinaryIO]:
    """Standard output for events alone: what anything else in this process or its children prints goes to stderr."""
    try:
        is_file = sys.stdout.fileno() == 1
    except OSError:  # a test has put something else in its place
        is_file = False
    if not is_file:
        kept = sys.stdout.buffer
        with contextlib.redirect_stdout(sys.stderr):
            yield kept
        return
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        yield kept
    finally:
        sys.stdout.flush()
        with contextlib.suppress(BrokenPipeError):
            kept.flush()
        os.dup2(kept.fileno(), 1)
        kept.close()
