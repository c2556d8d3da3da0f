"""Compiles requests in worker processes, where TRITON_INTERPRET is not set: a process that has it cannot compile."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tuning.static.compile_request import CompileRequest
from tuning.static.recorded import StaticReport
from tuning.workers import compile_farm

TIMEOUT_S = 1800.0
"""Seconds for one request, however many launches and architectures it has."""


class Failure(msgspec.Struct, frozen=True):
    """A request that could not be compiled, with the compiler's words."""

    request: CompileRequest
    reason: str


class Answers(msgspec.Struct):
    """Reports in the order of the requests, one per launch, and what could not be compiled."""

    reports: list[StaticReport]
    failures: list[Failure]


def compile_all(requests: Sequence[CompileRequest], jobs: int = 0) -> Answers:
    """Compile every request. jobs: processes, one per usable core for 0."""
    reports: list[tuple[int, StaticReport]] = []
    failures: list[tuple[int, str]] = []
    for index, found in compile_farm.compile_all(list(enumerate(requests)), jobs, timeout=TIMEOUT_S):
        if isinstance(found, str):
            failures.append((index, found))
        else:
            reports.append((index, found))
    reports.sort(key=lambda pair: pair[0])
    return Answers([report for _, report in reports], [Failure(requests[i], reason) for i, reason in sorted(failures)])
