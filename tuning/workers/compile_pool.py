"""Compiles Triton candidates before their turn, in worker processes, while a GPU times others.

The process that times a kernel finds it compiled in Triton's cache. Which candidate comes next depends on the times, so
it is predicted: each lane says what it will probably try, and an idle process compiles the likeliest candidate that is
not compiled yet. A wrong prediction costs an idle core's time. A compiler that crashes, hangs or exceeds the memory
limit costs its candidate. On a CPU compiling would disturb the timings: see ``tuning.workers.compile_farm``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.contract import Case, config_dict, config_key
from griffin_kernels.device import Device
from tuning.plan.planner import Planned
from tuning.static.recorded import CompileRequest
from tuning.workers.messages import Broken, Tried
from tuning.workers.process import Death, Limits, Worker

Upcoming = Iterator[tuple[Case, Planned]]
"""Candidates in the order in which they will probably be tried, computed lazily."""


def processes_for(device: Device, lanes: int) -> int:
    """How many cores may compile: those that no lane needs, and at most 16; none where the CPU itself is timed."""
    if device.kind == "cpu":
        return 0
    return max(1, min(16, len(devices.cores()) - 1 - lanes))


@dataclass(eq=False)
class _Task:
    request: CompileRequest
    done: Future[Tried | None] = field(default_factory=Future)


class CompilePool(contextlib.AbstractContextManager["CompilePool"]):
    """A pool of compiling processes. Use as a context manager."""

    def __init__(self, arch: str, processes: int, limits: Callable[[], Limits] = Limits) -> None:
        """arch: ``sm_90``, ``gfx942``. limits: made once per process."""
        self._arch = arch
        self._tasks: dict[tuple[str, str, str], _Task] = {}
        self._awaited: deque[_Task] = deque()
        self._coming: dict[str | None, Upcoming] = {}
        self._changes = 0
        self._changed = threading.Condition()
        self._guessing = threading.Lock()
        self._stopped = False
        self._workers = [Worker(limits(), compiles=True) for _ in range(processes)]
        self._threads = ThreadPoolExecutor(processes)
        for worker in self._workers:
            self._threads.submit(self._serve, worker)

    def prefetch(self, lane: str | None, coming: Upcoming) -> None:
        """Set what a lane will probably try next, in place of what was set before.

        lane: None for what is compiled when every lane's candidates are done.
        """
        with self._changed:
            self._coming[lane] = coming
            self._change()

    def problem(self, case: Case, planned: Planned) -> Tried | None:
        """Wait until a candidate is compiled; how it failed, or None.

        WorkerError where no process can be started, or the pool is closed meanwhile.
        """
        if planned.variant.launches is None:
            return None
        with self._changed:
            task, _ = self._task(case, planned)
            if not (task.done.running() or task.done.done()):
                self._awaited.append(task)
                self._change()
        try:
            return task.done.result()
        except CancelledError:
            raise errors.WorkerError("the run is being stopped") from None

    def close(self) -> None:
        """Stop at once: what is being compiled is given up. Also from another thread than those that wait."""
        with self._changed:
            self._stopped = True
            for task in self._tasks.values():
                task.done.cancel()
            self._change()
        for worker in self._workers:
            worker.stop()

    def _change(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def _task(self, case: Case, planned: Planned) -> tuple[_Task, bool]:
        """The task of a candidate, and whether it is a new one."""
        key = (planned.variant.key, case.key, config_key(planned.config))
        new = key not in self._tasks
        if new:
            config = config_dict(planned.config)
            request = CompileRequest(planned.variant.key, case, config, self._arch, until="cached")
            self._tasks[key] = _Task(request)
            if self._stopped:
                self._tasks[key].done.cancel()
        return self._tasks[key], new

    def _take(self) -> _Task | None:
        """The task to do now: one that a lane waits for, else the likeliest; None when the pool is closed."""
        while True:
            with self._changed:
                changes = self._changes
                while self._awaited:
                    task = self._awaited.popleft()
                    if task.done.set_running_or_notify_cancel():
                        return task
                if self._stopped:
                    return None
            guess = self._guess()
            with self._changed:
                if guess is None:
                    if changes == self._changes:
                        self._changed.wait()
                elif guess[1].variant.launches is not None:
                    task, new = self._task(*guess)
                    if new and task.done.set_running_or_notify_cancel():
                        return task

    def _guess(self) -> tuple[Case, Planned] | None:
        """The next candidate that is expected, by each lane in turn and then later; None where there is none."""
        with self._guessing:
            with self._changed:
                sources = sorted(self._coming.items(), key=lambda source: source[0] is None)
            for lane, coming in sources:
                try:
                    found = next(coming, None)
                except Exception:  # of a strategy, say: the lane asks it the same, and says what is wrong
                    found = None
                with self._changed:
                    if self._coming.get(lane) is coming:
                        del self._coming[lane]
                        if found is not None:
                            self._coming[lane] = coming  # behind the others
                if found is not None:
                    return found
            return None

    def _serve(self, worker: Worker) -> None:
        """One thread: takes tasks and has its worker compile them."""
        while (task := self._take()) is not None:
            began = time.monotonic()
            try:
                answer = worker.ask(task.request)
            except errors.WorkerError as error:
                task.done.set_exception(error)
                continue
            bad = answer if isinstance(answer, Death | Broken) else None
            if bad is None:
                worker.limits.learn(time.monotonic() - began)
            task.done.set_result(None if bad is None else Tried(bad.status, "compile", bad.problem))
        worker.close()

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._threads.shutdown()
