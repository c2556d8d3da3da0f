"""The protocol between the tuner and its workers: typed messages in MessagePack.

The tuner sends one request at a time. The worker reports every stage that it begins, so that the tuner knows how long
to wait and which stage failed, and then answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.records import Entry
from tuning.plan.budget import Budget
from tuning.record.journal_records import Finalist, OutputError, Race, Status
from tuning.static.recorded import CompileRequest, StaticReport


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First message. device: as ``device.detect`` takes it. prepare: ``module:function`` to call before any work."""

    device: str
    threads: int
    prepare: str = ""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Get a case ready. entries: what this run has decided so far, for ops that call other ops."""

    op: str
    case: Case
    entries: list[Entry]


class Try(msgspec.Struct, frozen=True, tag="try"):
    """Check and time one candidate of the loaded case. best_s: the fastest so far. patient: never cut it off."""

    variant: str
    config: dict[str, Any]
    budget: Budget
    best_s: float | None
    patient: bool


class RunRace(msgspec.Struct, frozen=True, tag="run"):
    """Race finalists on the loaded case."""

    field: list[Finalist]
    budget: Budget


Request = Start | Load | Try | RunRace | CompileRequest


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """What the worker begins: ``compile``, ``check``, ``time`` or ``race``. index: the finalist that runs next.

    seconds: how long the candidate's first call took, where that is known.
    """

    name: str
    index: int = -1
    seconds: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker has started, or the case is loaded."""


class Tried(msgspec.Struct, frozen=True, tag="tried"):
    """What became of a candidate; see ``journal_records.Candidate``.

    tainted: this process is not to be trusted any more.
    """

    status: Status
    stage: str = ""
    problem: str | None = None
    errors: list[OutputError] = []
    samples_s: list[float] = []
    tainted: bool = False


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """A CompileRequest is done, and what it was to report."""

    reports: list[StaticReport] = []


class Raced(msgspec.Struct, frozen=True, tag="raced"):
    """The race, run to its end."""

    race: Race


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """An exception: a compiler's, or one that no candidate's trial explains, while finalist ``index`` ran if any."""

    problem: str
    status: Status = "failed"
    index: int = -1


Answer = Ready | Tried | Compiled | Raced | Broken
Reply = Stage | Answer

_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def send(channel: Connection, message: Request | Reply) -> None:
    """Send a message through a channel."""
    channel.send_bytes(msgspec.msgpack.encode(message))


def requests(channel: Connection) -> Iterator[Request]:
    """Requests until the other end of the channel is closed."""
    with contextlib.suppress(EOFError):
        while True:
            yield _REQUESTS.decode(channel.recv_bytes())
