"""Compiles many launches in worker processes. A compiler that crashes or hangs costs one launch.

Processes are started, not forked: they must not have TRITON_INTERPRET, which changes what ``triton.jit`` makes of a
kernel at import, and a fork of a process with threads may hang. This module imports neither Triton nor a kernel.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.case import Case
from tuning.static.recorded import StaticReport

Key = TypeVar("Key")

SERVER = "tuning.workers.compile_server"

COMPILE_TIMEOUT_S = 120.0
"""Seconds after which a compilation is given up; the slowest of the catalogue take 10 to 20."""

GRACE_S = 20.0
"""Seconds that compilations which were begun in time may take beyond it; then they count as not begun."""


class LaunchRequest(msgspec.Struct, frozen=True):
    """One launch to compile: variant key, case, configuration values, which of the candidate's steps, architecture."""

    variant: str
    case: Case
    config: dict[str, Any]
    step: int
    target: str


class Answer(msgspec.Struct, frozen=True):
    """What became of a request: a report, or the reason why there is none."""

    report: StaticReport | None = None
    reason: str = ""


class _Server:
    """A compiling process, started when first needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            self._rest = b""
            self._process = subprocess.Popen(
                [sys.executable, "-m", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the asking process, which ends this one
            )
        return self._process

    def ask(self, request: bytes, timeout: float) -> bytes | str:
        """The line that answers, or why there is none."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + b"\n")
            process.stdin.flush()
        except OSError:
            self.stop()
            return "the compiling process could not be asked"
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.stop()
                    return f"the compiler took more than {timeout:.0f} s"
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    code = process.wait()
                    self.stop()
                    return f"the compiler's process died ({signal.Signals(-code).name if code < 0 else code})"
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process, from any thread: whoever waits for its answer sees that it died."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the process and forget it; for the thread that asks."""
        self.kill()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def compile_all(
    requests: Sequence[tuple[Key, LaunchRequest]],
    jobs: int = 0,
    seconds: float | None = None,
    timeout: float = COMPILE_TIMEOUT_S,
) -> Iterator[tuple[Key, StaticReport | str]]:
    """Reports, or reasons why there is none, as they come; they are begun in the order given.

    requests: key and what to compile. jobs: processes, one per usable core for 0. seconds: none is begun
    after so many, and what takes longer by GRACE_S is left out. Closing the iterator (an interrupt does) kills the
    processes.
    """
    if not requests:
        return
    began = time.monotonic()
    waiting = iter(requests)
    lock = threading.Lock()
    done: queue.Queue[tuple[Key, StaticReport | str] | None] = queue.Queue()
    servers = [_Server() for _ in range(min(jobs or len(devices.cores()), len(requests)))]
    closing = threading.Event()

    def work(server: _Server) -> None:
        try:
            while not closing.is_set() and (seconds is None or time.monotonic() - began < seconds):
                with lock:
                    taken = next(waiting, None)
                if taken is None:
                    break
                key, request = taken
                left = timeout if seconds is None else seconds + GRACE_S - (time.monotonic() - began)
                answer = server.ask(msgspec.json.encode(request), min(timeout, left))
                if not isinstance(answer, str) or left >= timeout:
                    done.put((key, _read(answer)))
                elif seconds is not None and time.monotonic() - began < seconds:
                    done.put((key, answer))  # it died before its time was up
        finally:
            server.stop()
            done.put(None)

    threads = [threading.Thread(target=work, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            result = done.get()
            if result is None:
                left -= 1
            else:
                yield result
    finally:
        closing.set()
        for server, thread in zip(servers, threads, strict=True):
            while thread.is_alive():  # again, as it may just be starting a process
                server.kill()
                thread.join(timeout=0.1)


def _read(line: bytes | str) -> StaticReport | str:
    if isinstance(line, str):
        return line
    try:
        found = msgspec.json.decode(line, type=Answer)
    except msgspec.DecodeError as error:
        raise errors.DeviceError(f"the compiling process answered nonsense: {error}") from None
    return found.report or found.reason
