"""Worker processes: started, sent requests, killed at their limits of time and memory, and replaced.

What crashes its process, exits, loops for ever, exhausts the memory or loses the GPU's context costs a new process, and
never the run. The tuner, the static stage and everything that compiles drive their processes through this module.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from griffin_kernels import errors
from roofline import stats
from tuning.plan.budget import LONGEST_S, memory_allowed
from tuning.record.journal_records import Status
from tuning.workers import messages
from tuning.workers.messages import Answer, Broken, Load, Raced, Ready, Request, RunRace, Stage, Tried, Try

SERVER = "tuning.workers.server"
"""The module that a worker process runs."""

DEATH_S = 10.0
"""How long a killed worker may take to be gone."""

TRIES = 3
"""Kills from outside during a request's own work after which the request counts as their cause. Deaths before it (at
the start, in making inputs or the reference) do not count."""

PROCESSES = 9
"""Processes that one request is sent to, at most."""

LEARNED_FROM = 5
"""Compilations after which the limit of a compilation follows from them."""

FLOOR_S = 10.0
"""The shortest learned limit in seconds: a busy machine is slow."""


class Limits:
    """Seconds for each stage, learned from the run, and bytes, beyond which the worker of a candidate is killed.

    longest_s: of any stage of a candidate. memory_bytes: resident memory of a worker; by default a share of what is
    free.
    """

    def __init__(self, longest_s: float = LONGEST_S, memory_bytes: int = 0) -> None:
        self.longest_s = longest_s
        self.memory_bytes = memory_bytes or memory_allowed()
        self._compiled: list[float] = []

    def seconds(self, request: Request, stage: Stage) -> float:
        """The limit of a stage of a request that begins now."""
        if stage.name == "compile":
            if len(self._compiled) < LEARNED_FROM:
                return self.longest_s
            wanted = max(3 * FLOOR_S, 4 * float(np.quantile(self._compiled, 0.9)))
        elif stage.name == "check":
            self.learn(stage.seconds)  # its compilation has ended
            wanted = 10 * stage.seconds
        elif stage.name == "time" and isinstance(request, Try):
            wanted = 3 * request.budget.seconds + 3 * (request.budget.least + 2) * stage.seconds
        elif stage.name == "race" and isinstance(request, RunRace) and stage.index >= 0:
            wanted = 200 * stats.median(request.field[stage.index].record.samples_s)
        else:
            return 600.0  # for starting a process, and for making inputs and their float64 reference
        return min(self.longest_s, max(FLOOR_S, wanted))

    def learn(self, seconds: float) -> None:
        """Take note of how long a compilation took. The limit of later ones follows from these."""
        self._compiled.append(seconds)


@dataclass(frozen=True)
class Death:
    """How a process ended without an answer. foreign: a signal from outside killed it, not the tuner or a fault."""

    status: Status
    stage: Stage
    problem: str
    foreign: bool = False


class Process:
    """One process, which lives as long as the thread that started it. compiles: it imports kernels to be compiled.

    TRITON_INTERPRET changes what ``triton.jit`` makes of a kernel at import, so what compiles must not have it.
    """

    def __init__(self, compiles: bool = False) -> None:
        hidden = ("TRITON_INTERPRET",) if compiles else ()
        self._channel, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", SERVER, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the asking process, which ends this one
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={name: value for name, value in os.environ.items() if name not in hidden},
                )
            except OSError as error:
                self._channel.close()
                raise errors.WorkerError(f"no worker process can be started: {error.strerror}") from None
        self._tail = b""
        self._drain = threading.Thread(target=self._read_output, daemon=True)
        self._drain.start()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while chunk := os.read(descriptor, 2**16):
            self._tail = (self._tail + chunk)[-4096:]  # is quoted where it dies

    def ask(self, request: Request, limit: Callable[[Stage], float], memory_bytes: int) -> Answer | Death:
        """Send a request and wait for its answer. limit: seconds for a stage. memory_bytes: resident, at most."""
        stage, allowed = Stage(""), limit(Stage(""))
        deadline = time.monotonic() + allowed
        with contextlib.suppress(ConnectionError):
            messages.send(self._channel, request)
        while True:
            if self._channel.poll(min(0.1, max(0.0, deadline - time.monotonic()))):  # memory is looked at so often
                try:
                    reply = messages.REPLIES.decode(self._channel.recv_bytes())
                except (EOFError, OSError):
                    return self._dead(stage)
                if not isinstance(reply, Stage):
                    return reply
                stage, allowed = reply, limit(reply)
                deadline = time.monotonic() + allowed
            elif self._process.poll() is not None:  # a child that it left behind may hold the channel open
                return self._dead(stage)
            elif time.monotonic() >= deadline:
                self.kill()
                return Death("timeout", stage, f"was killed after {round(allowed, 1):g} s without an answer")
            elif (used := self._resident_bytes()) > memory_bytes:
                self.kill()
                text = f"was killed when it held {used / 2**30:.1f} GiB; {memory_bytes / 2**30:.1f} are allowed"
                return Death("memory", stage, text)

    def _resident_bytes(self) -> int:
        """Resident memory; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="utf-8").split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _dead(self, stage: Stage) -> Death:
        """The Death of a process that closed its channel."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_S)  # an interpreter that ends has much to put away
        code = self._process.poll()
        self.kill()
        self._drain.join(1.0)
        said = " ".join(self._tail.decode(errors="replace").split())[-300:]
        quoted = f"; its last words: {said}" if said else ""
        if code is None:
            return Death("crashed", stage, f"closed its channel without an answer{quoted}")
        if code >= 0:
            return Death("crashed", stage, f"ended its process with status {code} and without an answer{quoted}")
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            text = "its process was killed (SIGKILL) by itself, another process, or the system for want of memory"
            return Death("crashed", stage, text, foreign=True)
        # by these a system or a person ends a group of processes; no kernel of ours sends them
        if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return Death("crashed", stage, f"its process was asked to end ({name})", foreign=True)
        return Death("crashed", stage, f"its process died of {name}{quoted}")

    def kill(self) -> None:
        """End the process and its group, from any thread. WorkerError where that does not help: its device hangs."""
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
        """Kill, and give the channel back."""
        try:
            self.kill()
        finally:
            self._drain.join(1.0)
            self._channel.close()
            if self._process.stdout is not None and not self._drain.is_alive():
                self._process.stdout.close()


class Worker:
    """A process that is started when needed and replaced when it dies. One thread at a time may ask.

    limits: of every stage. greeting: what a process is told before any other request, each answered with Ready; it may
    be changed, and a process that lives is told what is new in it. tell: called with a sentence when a process is lost.
    compiles: see Process.
    """

    def __init__(
        self,
        limits: Limits,
        greeting: Sequence[Request] = (),
        tell: Callable[[str], None] = lambda text: None,
        compiles: bool = False,
    ) -> None:
        self.limits, self.greeting, self._tell, self._compiles = limits, greeting, tell, compiles
        self._process: Process | None = None
        self._told: list[Request] = []
        self._starting = threading.Lock()
        self._asking = threading.RLock()
        self._stopped = False

    def ask(self, request: Request, limit: Callable[[Stage], float] | None = None) -> Answer | Death:
        """The answer to a request, or how the process ended that had it. limit: seconds of a stage, if not by limits.

        Where somebody else killed the process, who may not have meant this request, another process gets it.
        WorkerError where no process can be had, or after ``stop``.
        """
        with self._asking:
            tries = 0
            for _ in range(PROCESSES):
                self._greet()
                answer = self._say(request, limit or partial(self.limits.seconds, request))
                if not isinstance(answer, Death):
                    break
                tries += bool(answer.stage.name)
                if not answer.foreign or tries == TRIES:
                    break
            return answer

    def _greet(self) -> None:
        """Have a process that was told the whole greeting."""
        for _ in range(3):  # starts of a process that is killed from outside before it is ready
            answer: Answer | Death = Ready()
            for request in self.greeting:
                if not any(request is known for known in self._told):
                    answer = self._say(request, partial(self.limits.seconds, request))
                    if not isinstance(answer, Ready):
                        break
                    self._told.append(request)
            if isinstance(answer, Ready):
                return
            self.replace()
            if not isinstance(answer, Death) or not answer.foreign:
                break
        raise errors.WorkerError(f"a worker cannot be made ready: {getattr(answer, 'problem', answer)}")

    def _say(self, request: Request, limit: Callable[[Stage], float]) -> Answer | Death:
        with self._starting:
            self._go_on()
            if self._process is None:
                self._process, self._told = Process(self._compiles), []
            process = self._process
        answer = process.ask(request, limit, self.limits.memory_bytes)
        self._go_on()
        if isinstance(answer, Death):
            self.lose(answer.problem)
        return answer

    def _go_on(self) -> None:
        if self._stopped:
            raise errors.WorkerError("the run is being stopped")

    def replace(self) -> None:
        """End the process; the next request gets another."""
        with self._asking:
            process, self._process, self._told = self._process, None, []
            if process is not None:
                process.close()

    def lose(self, why: str | None) -> None:
        """Replace the process, and say why."""
        self.replace()
        self._tell(f"the worker is replaced: {why}")

    def stop(self) -> None:
        """End the process for good, from any thread: whoever waits for an answer gets a WorkerError."""
        with self._starting:
            self._stopped = True
            process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Stop, and give everything up when nobody asks any more."""
        self.stop()
        self.replace()


class IsolatedExecutor(Worker):
    """Runs the candidates of one case at a time as InProcessExecutor does, in a process that is replaced when it dies.

    greeting: a Start.
    """

    def load(self, request: Load) -> None:
        self.greeting = [self.greeting[0], request]

    def attempt(self, request: Try) -> Tried | Broken:
        answer = self.ask(request)
        if isinstance(answer, Death):
            return Tried(answer.status, answer.stage.name or "load", answer.problem)
        assert isinstance(answer, Tried | Broken), answer
        if isinstance(answer, Tried) and answer.tainted:
            self.lose(f"{request.variant}: {answer.problem}")
        return answer

    def race(self, request: RunRace) -> Raced | Broken:
        answer = self.ask(request)
        if isinstance(answer, Death):
            return Broken(answer.problem, answer.status, answer.stage.index)
        assert isinstance(answer, Raced | Broken), answer
        if isinstance(answer, Broken) and answer.status != "failed":
            self.lose(answer.problem)
        return answer
