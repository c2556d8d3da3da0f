"""Worker processes as the tuner drives them: started, sent requests, killed at their limits, and replaced.

A candidate that crashes its process, exits, loops for ever, exhausts the memory or loses the GPU's context costs a new
process, and never the run.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from griffin_kernels import errors
from griffin_kernels.case import Case
from griffin_kernels.records import Entry
from tuning.measure.rounds import Finalist
from tuning.plan.budget import Budget
from tuning.record.journal_records import Status
from tuning.workers.limits import Limits
from tuning.workers.messages import (
    Answer,
    Broken,
    Contender,
    Load,
    Raced,
    Ready,
    Request,
    RunRace,
    Stage,
    Start,
    Tried,
    Try,
    packed,
    take,
)

WATCH_S = 0.1
"""How often the memory of a busy worker is looked at."""

DEATH_S = 10.0
"""How long a killed worker may take to be gone."""

STARTS = 3
"""Starts of a worker that is killed from outside before it is ready."""

TRIES = 3
"""Kills from outside during a candidate's own work after which the candidate counts as their cause. Deaths before it
(at the start, in making inputs or the reference) do not count."""

PROCESSES = 9
"""Processes that one request is sent to, at most."""

ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which a system or a person ends a group of processes. No kernel of ours sends them."""

TAIL_BYTES = 4096
"""How much of what a worker prints is kept, to quote where it dies."""


@dataclass(frozen=True)
class Death:
    """How a worker ended without an answer. foreign: a signal from outside killed it, not the tuner or a fault."""

    status: Status
    stage: Stage
    problem: str
    foreign: bool = False


class Worker:
    """One worker process."""

    def __init__(self) -> None:
        questions, self._questions = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tuning.workers.server", str(questions), str(answers), str(os.getpid())],
                pass_fds=(questions, answers),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            os.close(self._questions)
            os.close(self._answers)
            raise errors.WorkerError(f"no worker process can be started: {error.strerror}") from None
        finally:
            os.close(questions)
            os.close(answers)
        self._received = bytearray()
        self._tail = b""
        self._drain = threading.Thread(target=self._read_output, daemon=True)
        self._drain.start()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while chunk := os.read(descriptor, 2**16):
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]

    def ask(self, request: Request, limit: Callable[[Stage], float], memory_bytes: int) -> Answer | Death:
        """Send a request and wait for its answer. limit: seconds for a stage. memory_bytes: resident, at most."""
        stage, allowed = Stage(""), limit(Stage(""))
        try:
            with open(self._questions, "wb", closefd=False) as pipe:
                pipe.write(packed(request))
        except BrokenPipeError:
            return self._dead(stage)
        deadline = time.monotonic() + allowed
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while True:
                while (reply := take(self._received)) is not None:
                    if not isinstance(reply, Stage):
                        return reply
                    stage, allowed = reply, limit(reply)
                    deadline = time.monotonic() + allowed
                if selector.select(min(WATCH_S, max(0.0, deadline - time.monotonic()))):
                    if not (chunk := os.read(self._answers, 2**20)):
                        return self._dead(stage)
                    self._received += chunk
                elif self._process.poll() is not None:  # a child that it left behind may hold the pipe open
                    return self._dead(stage)
                elif time.monotonic() >= deadline:
                    self.kill()
                    return Death("timeout", stage, f"was killed after {allowed:.3g} s without an answer")
                elif (used := self.resident_bytes()) > memory_bytes:
                    self.kill()
                    text = f"was killed when it held {used / 2**30:.1f} GiB; {memory_bytes / 2**30:.1f} are allowed"
                    return Death("memory", stage, text)

    def resident_bytes(self) -> int:
        """Resident memory; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="utf-8").split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _dead(self, stage: Stage) -> Death:
        """The Death of a process that closed its pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_S)  # an interpreter that ends has much to put away
        code = self._process.poll()
        self.kill()
        self._drain.join(1.0)
        said = " ".join(self._tail.decode(errors="replace").split())[-300:]
        quoted = f"; its last words: {said}" if said else ""
        if code is None:
            return Death("crashed", stage, f"closed its pipe without an answer{quoted}")
        if code >= 0:
            return Death("crashed", stage, f"ended its process with status {code} and without an answer{quoted}")
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            text = "its process was killed (SIGKILL) by itself, another process, or the system for want of memory"
            return Death("crashed", stage, text, foreign=True)
        if -code in ENDINGS:
            return Death("crashed", stage, f"its process was asked to end ({name})", foreign=True)
        return Death("crashed", stage, f"its process died of {name}{quoted}")

    def kill(self) -> None:
        """End the process and its group. WorkerError where even that does not help: its device hangs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(DEATH_S)
        except subprocess.TimeoutExpired:
            raise errors.WorkerError(
                f"worker {self._process.pid} is still there {DEATH_S:g} s after SIGKILL: its device hangs; reset the "
                "device or restart the machine, then run `griffin tune --resume`"
            ) from None

    def close(self) -> None:
        """Kill, and give the pipes back."""
        try:
            self.kill()
        finally:
            self._drain.join(1.0)
            for descriptor in (self._questions, self._answers):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            self._questions = self._answers = -1
            if self._process.stdout is not None and not self._drain.is_alive():
                self._process.stdout.close()


class Executor(Protocol):
    """The interface through which the tuner runs candidates, one case at a time."""

    def load(self, op: str, case: Case, entries: Sequence[Entry]) -> None:
        """Take up a case. entries: what the run has decided so far, for ops that call other ops."""

    def attempt(
        self, variant: str, config: dict[str, Any], budget: Budget, best_s: float | None, patient: bool
    ) -> Tried | Broken:
        """Check and time a candidate. Broken: the case's own inputs cannot be made."""

    def race(self, field: Sequence[Finalist], budget: Budget) -> Raced | Broken:
        """Race finalists; Broken names the one that spoiled it."""

    def renew(self) -> None:
        """Start anew in a process that has run nothing."""

    def close(self) -> None:
        """Give everything up."""


class IsolatedExecutor:
    """An Executor in a worker process, which is started when needed and replaced when it dies.

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
        self._start = Start(device, threads, prepare)
        self._limits, self._tell = limits, tell
        self._worker: Worker | None = None
        self._case: Load | None = None
        self._loaded = self._closed = False
        self._busy = threading.RLock()

    def load(self, op: str, case: Case, entries: Sequence[Entry]) -> None:
        self._case = Load(op, case, list(entries))
        self._loaded = False

    def _ready(self) -> Worker:
        """A worker with the case loaded. WorkerError where none can be had."""
        for _ in range(STARTS):
            if self._closed:
                raise errors.WorkerError("the run is being stopped")
            if self._worker is None:
                self._worker, self._loaded = Worker(), False
                answer = self._say(self._start)
                if isinstance(answer, Ready) and self._case is not None:
                    answer = self._say(self._case)
            else:
                answer = Ready() if self._loaded or self._case is None else self._say(self._case)
            if isinstance(answer, Ready):
                self._loaded = True
                return self._worker
            self._drop("")
            if not isinstance(answer, Death) or not answer.foreign:
                break
        raise errors.WorkerError(f"a worker cannot be made ready: {getattr(answer, 'problem', answer)}")

    def _say(self, request: Request) -> Answer | Death:
        assert self._worker is not None
        return self._worker.ask(request, self._limits.seconds, self._limits.memory_bytes)

    def _drop(self, why: str) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.close()
            if why:
                self._tell(f"the worker is replaced: {why}")

    def _ask(self, request: Try | RunRace) -> Answer | Death:
        with self._busy:
            tries = 0
            for _ in range(PROCESSES):
                self._ready()
                answer = self._say(request)
                if self._closed:
                    raise errors.WorkerError("the run is being stopped")
                if not isinstance(answer, Death):
                    break
                self._drop(answer.problem)
                tries += bool(answer.stage.name)
                if not answer.foreign or tries == TRIES:
                    break  # else whoever killed it may not have meant this candidate: it gets another process
            return answer

    def attempt(
        self, variant: str, config: dict[str, Any], budget: Budget, best_s: float | None, patient: bool
    ) -> Tried | Broken:
        self._limits.begin(budget)
        answer = self._ask(Try(variant, config, budget, best_s, patient))
        if isinstance(answer, Death):
            return Tried(answer.status, answer.stage.name or "load", answer.problem)
        if not isinstance(answer, Tried | Broken):
            raise errors.WorkerError(f"a worker answered {type(answer).__name__} where a candidate was tried")
        if isinstance(answer, Tried) and answer.tainted:
            self._drop(f"{variant}: {answer.problem}")
        return answer

    def race(self, field: Sequence[Finalist], budget: Budget) -> Raced | Broken:
        self._limits.begin(budget, [f.record for f in field])
        answer = self._ask(RunRace([Contender(f.record, f.incumbent, f.place) for f in field], budget))
        if isinstance(answer, Death):
            return Broken(answer.problem, answer.status, answer.stage.index)
        if isinstance(answer, Broken) and answer.status != "failed":
            self._drop(answer.problem)
        if not isinstance(answer, Raced | Broken):
            raise errors.WorkerError(f"a worker answered {type(answer).__name__} where a race was run")
        return answer

    def renew(self) -> None:
        self._drop("")

    def close(self) -> None:
        """Also from another thread than the one that waits for an answer, which then raises WorkerError."""
        self._closed = True
        if (worker := self._worker) is not None:
            worker.kill()
        with self._busy:
            self._drop("")
