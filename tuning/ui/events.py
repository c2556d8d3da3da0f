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
from griffin_kernels.texts import now
from roofline import stats
from tuning.plan.eta import Estimate
from tuning.record import journal_records
from tuning.record.journal import encoded
from tuning.ui.progress import Tally


class BeginEvent(msgspec.Struct, frozen=True, tag="begin", tag_field="event"):
    """The run begins. total: candidates, at most. already: candidates in the journal of an interrupted run."""

    date: str
    device: str
    journal: str
    total: int
    already: int


class CaseEvent(msgspec.Struct, frozen=True, tag="job", tag_field="event"):
    """A case is begun. lane: the device that it runs on."""

    op: str
    case: str
    lane: str


class CandidateEvent(msgspec.Struct, frozen=True, tag="candidate", tag_field="event"):
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


class ResultEvent(msgspec.Struct, frozen=True, tag="result", tag_field="event"):
    """A case is decided: the entry that the registry gets."""

    entry: Entry
    lane: str
    left_s: float | None


class NoiseEvent(msgspec.Struct, frozen=True, tag="noise", tag_field="event"):
    """The A/A test; see ``journal_records.Noise``."""

    what: str
    rounds: int
    low: float
    high: float
    floor: float


class WorkerEvent(msgspec.Struct, frozen=True, tag="worker", tag_field="event"):
    """A worker process was lost or replaced."""

    text: str


class NoteEvent(msgspec.Struct, frozen=True, tag="note", tag_field="event"):
    """A message for a person."""

    text: str


class UndecidedEvent(msgspec.Struct, frozen=True, tag="undecided", tag_field="event"):
    """Nothing is published for a case; see ``journal_records.Undecided``."""

    op: str
    case: str
    why: str
    command: str
    lane: str


class InterruptedEvent(msgspec.Struct, frozen=True, tag="interrupted", tag_field="event"):
    """The run was stopped by a signal. entries: cases published. left: cases not decided. resume: the command."""

    resume: str
    entries: int = 0
    left: int = 0


class EndEvent(msgspec.Struct, frozen=True, tag="end", tag_field="event"):
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


Event = (
    BeginEvent
    | CaseEvent
    | CandidateEvent
    | ResultEvent
    | UndecidedEvent
    | NoiseEvent
    | WorkerEvent
    | NoteEvent
    | InterruptedEvent
    | EndEvent
)


class Events(Tally):
    """A Listener that writes events to a stream."""

    def __init__(self, stream: BinaryIO, device: str, journal: str, estimate: Estimate | None = None) -> None:
        super().__init__(estimate)
        self.stream, self.device, self.journal = stream, device, journal
        self.lost = False
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """One line. Once nobody reads any more the rest is dropped, and the run goes on."""
        with self._lock:
            if self.lost:
                return
            try:
                self.stream.write(encoded(event) + b"\n")
                self.stream.flush()
            except OSError as error:
                self.lost = True
                print(f"note: events cannot be written any more: {error.strerror}; the run goes on", file=sys.stderr)

    def begin(self, already: int) -> None:
        super().begin(already)
        self.write(BeginEvent(now(), self.device, self.journal, self.total, already))

    def job(self, op: str, case: str, *, lane: str = "") -> None:
        super().job(op, case, lane=lane)
        self.write(CaseEvent(op, case, lane))

    def candidate(self, record: journal_records.Candidate, *, lane: str = "") -> None:
        super().candidate(record, lane=lane)
        at = self.lanes[lane]
        of_record = msgspec.structs.asdict(record) | {"case": record.case.key}
        median = stats.median(record.samples_s) if record.samples_s else None
        of_run = {"done": self.done, "total": self.total, "failed": self.failed, "left_s": self.left, "lane": lane}
        facts = {"median_s": median, "best_s": at.best_s, "speedup": at.speedup}
        self.write(msgspec.convert(of_record | facts | of_run, CandidateEvent))

    def result(self, result: journal_records.Result, *, lane: str = "") -> None:
        super().result(result, lane=lane)
        self.write(ResultEvent(result.entry, lane, self.left))

    def undecided(self, record: journal_records.Undecided, *, lane: str = "") -> None:
        super().undecided(record, lane=lane)
        self.write(UndecidedEvent(record.op, record.case.key, record.why, record.command, lane))

    def noise(self, record: journal_records.Noise) -> None:
        self.write(msgspec.convert(record, NoiseEvent, from_attributes=True))

    def worker(self, text: str) -> None:
        self.write(WorkerEvent(text))

    def note(self, text: str) -> None:
        self.write(NoteEvent(text))


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
