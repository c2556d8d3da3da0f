"""Precompiles a CPU's variants: calls every native and torch.compile'd one once, in a process per core, before timing.

Such variants compile at their first call, on one core, and cache the result on disk for the process that times them. A
call that hangs is recorded as a timeout and not repeated. A candidate that fails or crashes here is tried in its turn,
and recorded then. A GPU's kernels are compiled beside what is timed
(``tuning.workers.compile_pool``).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from griffin_kernels import device as devices
from griffin_kernels.contract import config_dict
from tuning.plan.planner import Job, Planned
from tuning.workers.limits import Limits
from tuning.workers.messages import FirstCall, Ready, Start
from tuning.workers.process import Death, Worker

BACKENDS = ("compiled", "numba")
"""What compiles at its first call, the slowest compiler first."""


def first_calls(jobs: Sequence[Job], known: Callable[[Job, Planned], bool]) -> list[list[FirstCall]]:
    """One call per variant and case, an op's of one backend in one group, in the order to begin them.

    Variants of an op may share kernels; ops seldom do, so groups may run at once. known: whether a candidate was tried
    before: what it needs is on disk.
    """
    groups: dict[tuple[int, str], list[FirstCall]] = {}
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
            group.append(FirstCall(key, job.case, config_dict(usual.config)))
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -len(groups[key])))]


def run(
    groups: Sequence[Sequence[FirstCall]],
    start: Start,
    limits: Callable[[], Limits],
    hung: Callable[[FirstCall, Death], None],
    processes: int = 0,
) -> None:
    """Make the calls, each group in one process; returns when all are done.

    start: what every process is told first. limits: made once per process. hung: told of calls that were killed when
    their time was over, from the thread that waited. processes: by default one per core. WorkerError where none can be
    started.
    """
    waiting: queue.SimpleQueue[Sequence[FirstCall]] = queue.SimpleQueue()
    for group in groups:
        waiting.put(group)
    stopped = threading.Event()
    alive: set[Worker] = set()

    def serve() -> None:
        """One process after the other, each until it dies or nothing is left."""
        while not stopped.is_set() and not waiting.empty():
            worker = Worker()
            alive.add(worker)
            try:
                if not _serve(worker, waiting, start, limits(), hung, stopped):
                    return
            finally:
                alive.discard(worker)
                worker.close()

    # workers die with the thread that started them: each thread keeps its own
    count = min(processes or len(devices.cores()), len(groups))
    with ThreadPoolExecutor(max(1, count)) as pool:
        try:
            for future in as_completed([pool.submit(serve) for _ in range(count)]):
                future.result()
        finally:
            stopped.set()
            for worker in tuple(alive):
                worker.kill()


def _serve(
    worker: Worker,
    waiting: queue.SimpleQueue[Sequence[FirstCall]],
    start: Start,
    limits: Limits,
    hung: Callable[[FirstCall, Death], None],
    stopped: threading.Event,
) -> bool:
    """Have a process make calls. False where it could not even begin; the run says so when it starts its own."""
    if not isinstance(worker.ask(start, limits.seconds, limits.memory_bytes), Ready):
        return False
    while not stopped.is_set():
        try:
            group = waiting.get_nowait()
        except queue.Empty:
            return True
        for request in group:
            answer = worker.ask(request, limits.seconds, limits.memory_bytes)
            if isinstance(answer, Death):
                if answer.status == "timeout" and answer.stage.name:
                    hung(request, answer)
                return True  # and the rest of the group is compiled in its turn
    return True
