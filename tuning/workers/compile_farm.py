"""Compiles many requests in worker processes. A compiler that crashes or hangs costs one request.

``first_calls`` and ``make_calls`` do so for a CPU before anything is timed: they call every native and torch.compile'd
variant once, in a process per core. Such variants compile at their first call, on one core, and cache the result on
disk for the process that times them. A call that hangs is recorded as a timeout and not repeated. A candidate that
fails or crashes here is tried in its turn, and recorded then. A GPU's kernels are compiled beside what is timed
(``tuning.workers.compile_pool``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from griffin_kernels import device as devices
from griffin_kernels.contract import config_dict
from tuning.plan.planner import Job, Planned
from tuning.static.recorded import CompileRequest, StaticReport
from tuning.workers.messages import Answer, Broken, Compiled, Start
from tuning.workers.process import Death, Limits, Worker

T = TypeVar("T")

GRACE_S = 20.0
"""Seconds that compilations which were begun in time may take beyond it; then they count as not begun."""

BACKENDS = ("compiled", "numba")
"""What compiles at its first call, the slowest compiler first."""


def ask_all(
    groups: Iterable[Sequence[T]], workers: Sequence[Worker], ask: Callable[[Worker, T], Answer | Death | None]
) -> Iterator[tuple[T, Answer | Death]]:
    """(item, answer) of all groups of items, each group when it is done; groups are begun in the order given.

    A group is asked of one process; the items after one that it dies of, or that ``ask`` answers with None, are left
    out. Closing the iterator, as an interrupt does, kills the processes. Raises what ``ask`` raises.
    """
    mine, free = threading.local(), iter(workers)

    def begin() -> None:  # a process dies with the thread that started it: each thread has a worker of its own
        mine.worker = next(free)

    def serve(group: Sequence[T]) -> list[tuple[T, Answer | Death]]:
        found = []
        for item in group:
            if (answer := ask(mine.worker, item)) is not None:
                found.append((item, answer))
            if answer is None or isinstance(answer, Death):
                break
        return found

    pool = ThreadPoolExecutor(max(1, len(workers)), initializer=begin)
    try:
        for done in as_completed([pool.submit(serve, group) for group in groups]):
            yield from done.result()
    finally:
        for worker in workers:
            worker.stop()
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def compile_all(
    requests: Sequence[tuple[T, CompileRequest]],
    jobs: int = 0,
    seconds: float | None = None,
    timeout: float = 120.0,
) -> Iterator[tuple[T, StaticReport | str]]:
    """Every report, or the reason why a request has none, as they come; requests are begun in the order given.

    requests: key and what to compile. jobs: processes, one per usable core for 0. seconds: none is begun after so many,
    and what takes longer by GRACE_S is left out. timeout: seconds for one; the slowest of the catalogue take 10 to 20.
    Closing the iterator (an interrupt does) kills the processes.
    """
    began = time.monotonic()
    late = began + (float("inf") if seconds is None else seconds)

    def ask(worker: Worker, item: tuple[T, CompileRequest]) -> Answer | Death | None:
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


def first_calls(jobs: Sequence[Job], known: Callable[[Job, Planned], bool]) -> list[list[CompileRequest]]:
    """One call per variant and case, an op's of one backend in one group, in the order to begin them.

    Variants of an op may share kernels; ops seldom do, so groups may run at once. known: whether a candidate was tried
    before: what it needs is on disk.
    """
    groups: dict[tuple[int, str], list[CompileRequest]] = {}
    for job in jobs:
        by_variant: dict[str, list[Planned]] = {}
        for planned in job.candidates:
            if planned.reason is None and planned.variant.backend in BACKENDS:
                by_variant.setdefault(planned.variant.key, []).append(planned)
        for key, candidates in by_variant.items():
            if any(known(job, planned) for planned in candidates):
                continue
            usual = min(candidates, key=lambda p: p.config != p.variant.config())
            group = groups.setdefault((BACKENDS.index(usual.variant.backend), job.op.name), [])
            group.append(CompileRequest(key, job.case, config_dict(usual.config)))
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -len(groups[key])))]


def make_calls(
    groups: Sequence[Sequence[CompileRequest]],
    start: Start,
    limits: Callable[[], Limits],
    hung: Callable[[CompileRequest, Death], None],
    processes: int = 0,
) -> None:
    """Make the calls, each group in one process; returns when all are done.

    start: what every process is told first. limits: made once per process. hung: told of calls that were killed when
    their time was over. processes: by default one per core. WorkerError where none can be made ready.
    """
    workers = [Worker(limits(), [start]) for _ in range(min(processes or len(devices.cores()), len(groups)))]
    for request, answer in ask_all(groups, workers, Worker.ask):
        # the rest of a group whose process died is compiled in its turn
        if isinstance(answer, Death) and answer.status == "timeout" and answer.stage.name:
            hung(request, answer)
