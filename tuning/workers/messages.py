"""The protocol between the tuner and its workers: typed messages, each a length and MessagePack.

The tuner sends one request at a time. The worker reports every stage that it begins, so that the tuner knows how long
to wait and which stage failed, and then answers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.records import Entry
from tuning.plan.budget import Budget
from tuning.record.journal_records import Candidate, OutputError, Race, Status


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


class Contender(msgspec.Struct, frozen=True):
    """A ``rounds.Finalist``, with its variant and configuration by name only."""

    record: Candidate
    incumbent: bool
    place: int


class RunRace(msgspec.Struct, frozen=True, tag="run"):
    """Race finalists on the loaded case."""

    field: list[Contender]
    budget: Budget


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    """Compile every launch of a candidate into Triton's cache, for the architecture of a device."""

    variant: str
    case: Case
    config: dict[str, Any]
    arch: str


class FirstCall(msgspec.Struct, frozen=True, tag="first"):
    """Call a variant once, for what it compiles then and keeps on disk."""

    variant: str
    case: Case
    config: dict[str, Any]


Request = Start | Load | Try | RunRace | Compile | FirstCall


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """What the worker begins: ``compile``, ``check``, ``time`` or ``race``. index: the finalist that runs next.

    seconds: how long the candidate's first call took, where that is known.
    """

    name: str
    index: int = -1
    seconds: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker has started, or the case is loaded, or all is compiled, or the call is made."""


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


class Raced(msgspec.Struct, frozen=True, tag="raced"):
    """The race, run to its end."""

    race: Race


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """An exception that no candidate's trial explains: while a case was loaded, or while finalist ``index`` ran."""

    problem: str
    status: Status = "failed"
    index: int = -1


Answer = Ready | Tried | Raced | Broken
Reply = Stage | Answer

_HEAD = struct.Struct("<I")
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def packed(message: Request | Reply) -> bytes:
    """A message as it goes through a pipe."""
    body = msgspec.msgpack.encode(message)
    return _HEAD.pack(len(body)) + body


def requests(stream: BinaryIO) -> Iterator[Request]:
    """Requests until the other end of the pipe is closed."""
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        yield _REQUESTS.decode(stream.read(_HEAD.unpack(head)[0]))


def take(received: bytearray) -> Reply | None:
    """The first whole reply among received bytes, which it is cut off from; None while it is incomplete."""
    if len(received) < _HEAD.size:
        return None
    end = _HEAD.size + _HEAD.unpack(received[: _HEAD.size])[0]
    if len(received) < end:
        return None
    reply = _REPLIES.decode(bytes(received[_HEAD.size : end]))
    del received[:end]
    return reply
