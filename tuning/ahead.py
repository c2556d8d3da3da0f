"""Compiles Triton candidates before their turn, in processes of their own, while a GPU times others.

A compiled kernel is found in Triton's cache by the process that times it. A compiler that crashes, hangs or eats the
memory costs the candidate, here as there. On a CPU that would disturb what is timed: see ``tuning.precompile``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from griffin_kernels import errors
from griffin_kernels.contract import Case, config_dict
from griffin_kernels.device import Device
from griffin_kernels.records import CaseRecord
from tuning.isolation import Death, Worker
from tuning.limits import Limits
from tuning.messages import Broken, Compile, Tried
from tuning.plan import Job, Planned

MOST_PROCESSES = 16

SOON, NOW = 1, 0
"""Priorities: what is due at some time, and what somebody waits for."""


def processes_for(device: Device, lanes: int) -> int:
    """How many cores may compile: those that no lane needs; none where the CPU itself is timed."""
    if device.kind == "cpu":
        return 0
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) - 1 - lanes))


@dataclass(order=True)
class _Task:
    priority: int
    number: int
    request: Compile = field(compare=False)
    done: Future[Tried | None] = field(compare=False)


class Ahead:
    """A pool of compiling processes. Use as a context manager."""

    def __init__(self, arch: str, processes: int, limits: Callable[[], Limits] = Limits) -> None:
        """arch: ``sm_90``, ``gfx942``. limits: made once per process."""
        self._arch, self._limits = arch, limits
        self._queue: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._futures: dict[tuple[str, str, str], Future[Tried | None]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._workers: list[Worker] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(processes)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Compile a case's candidates some time, in their order."""
        for planned in job.candidates:
            if planned.reason is None and planned.variant.launches is not None:
                self._future(job.case, planned, SOON)

    def problem(self, case: Case, planned: Planned) -> Tried | None:
        """What went wrong when a candidate was compiled, or None; waits until it is known."""
        if planned.variant.launches is None:
            return None
        known = self._future(case, planned, NOW)
        return known.result()

    def _future(self, case: Case, planned: Planned, priority: int) -> Future[Tried | None]:
        request = Compile(planned.variant.key, CaseRecord.of(case), config_dict(planned.config), self._arch)
        key = (request.variant, case.key, str(request.config))
        with self._lock:
            future = self._futures.get(key)
            if future is None or (priority == NOW and not future.running() and not future.done()):
                # asked for a second time it is queued twice: whoever comes second finds it taken
                future = self._futures.setdefault(key, Future())
                self._queue.put(_Task(priority, next(self._numbers), request, future))
        return future

    def _serve(self) -> None:
        """One thread: takes tasks and has its process compile them."""
        worker: Worker | None = None
        limits = self._limits()
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                task = self._queue.get(timeout=0.1)
                with self._lock:
                    if task.done.running() or task.done.done():
                        continue
                    task.done.set_running_or_notify_cancel()
                try:
                    worker = worker or self._started()
                    answer = worker.ask(task.request, lambda stage: limits.longest_s, limits.memory_bytes)
                except errors.WorkerError as error:
                    task.done.set_exception(error)
                    continue
                if isinstance(answer, Death):
                    with self._lock:
                        self._workers.remove(worker)
                    worker.close()
                    worker = None
                    task.done.set_result(Tried(answer.status, "compile", answer.problem))
                elif isinstance(answer, Broken):
                    task.done.set_result(Tried(answer.status, "compile", answer.problem))
                else:
                    task.done.set_result(None)
        if worker is not None:
            worker.close()

    def _started(self) -> Worker:
        worker = Worker()
        with self._lock:
            self._workers.append(worker)
        return worker

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop at once: what is being compiled is given up."""
        self._stopped.set()
        with self._lock:
            for worker in self._workers:
                worker.kill()
            for future in self._futures.values():
                future.cancel()
        for thread in self._threads:
            thread.join(5.0)
