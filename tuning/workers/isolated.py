"""Runs candidates as ``InProcessExecutor`` does, in a worker process that is replaced when it dies."""

from __future__ import annotations

from collections.abc import Callable

from tuning.workers.limits import Limits
from tuning.workers.messages import Broken, Load, Raced, RunRace, Start, Tried, Try
from tuning.workers.process import Death, Worker


class IsolatedExecutor:
    """Runs the candidates of one case at a time; the methods are those of InProcessExecutor.

    device: as ``device.detect`` takes it. tell: called with a sentence when a worker is lost.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        limits: Limits,
        tell: Callable[[str], None] = lambda text: None,
        prepare: str = "",
    ) -> None:
        self._start, self._tell = Start(device, threads, prepare), tell
        self._worker = Worker(limits, [self._start], lambda death: self._replaced(death.problem))

    def _replaced(self, why: str | None) -> None:
        self._worker.replace()
        self._tell(f"the worker is replaced: {why}")

    def load(self, request: Load) -> None:
        self._worker.greeting = [self._start, request]

    def attempt(self, request: Try) -> Tried | Broken:
        answer = self._worker.ask(request)
        if isinstance(answer, Death):
            return Tried(answer.status, answer.stage.name or "load", answer.problem)
        assert isinstance(answer, Tried | Broken), answer
        if isinstance(answer, Tried) and answer.tainted:
            self._replaced(f"{request.variant}: {answer.problem}")
        return answer

    def race(self, request: RunRace) -> Raced | Broken:
        answer = self._worker.ask(request)
        if isinstance(answer, Death):
            return Broken(answer.problem, answer.status, answer.stage.index)
        assert isinstance(answer, Raced | Broken), answer
        if isinstance(answer, Broken) and answer.status != "failed":
            self._replaced(answer.problem)
        return answer

    def renew(self) -> None:
        """Start anew in a process that has run nothing."""
        self._worker.replace()

    def close(self) -> None:
        """Also from another thread than the one that waits for an answer, which then raises WorkerError."""
        self._worker.close()
