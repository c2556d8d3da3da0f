"""Compiles many requests in worker processes. A compiler that crashes or hangs costs one request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from griffin_kernels import device as devices
from tuning.static.compile_request import CompileRequest
from tuning.static.recorded import StaticReport
from tuning.workers.limits import Limits
from tuning.workers.messages import Answer, Broken, Compiled
from tuning.workers.process import Death, Worker, ask_all

Key = TypeVar("Key")

COMPILE_TIMEOUT_S = 120.0
"""Seconds after which a compilation is given up; the slowest of the catalogue take 10 to 20."""

GRACE_S = 20.0
"""Seconds that compilations which were begun in time may take beyond it; then they count as not begun."""


def compile_all(
    requests: Sequence[tuple[Key, CompileRequest]],
    jobs: int = 0,
    seconds: float | None = None,
    timeout: float = COMPILE_TIMEOUT_S,
) -> Iterator[tuple[Key, StaticReport | str]]:
    """Every report, or the reason why a request has none, as they come; requests are begun in the order given.

    requests: key and what to compile. jobs: processes, one per usable core for 0. seconds: none is begun after so many,
    and what takes longer by GRACE_S is left out. timeout: seconds for one. Closing the iterator (an interrupt does)
    kills the processes.
    """
    began = time.monotonic()
    late = began + (float("inf") if seconds is None else seconds)

    def ask(worker: Worker, item: tuple[Key, CompileRequest]) -> Answer | Death | None:
        if (now := time.monotonic()) >= late:
            return None
        cut = late + GRACE_S - now < timeout
        answer = worker.ask(item[1], lambda stage: min(timeout, max(0.0, late + GRACE_S - time.monotonic())))
        return None if cut and isinstance(answer, Death) and time.monotonic() >= late else answer

    count = min(jobs or len(devices.cores()), len(requests))
    crew = [Worker(Limits(), compiles=True) for _ in range(count)]
    for (key, request), answer in ask_all(([item] for item in requests), crew, ask):
        if isinstance(answer, Compiled):
            yield from ((key, report) for report in answer.reports)
        else:
            assert isinstance(answer, Broken | Death), f"{answer} to {request}"
            yield key, answer.problem
