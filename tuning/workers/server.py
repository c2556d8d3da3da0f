"""``python -m tuning.workers.server FD PARENT``: runs candidates, and may be killed at any moment.

It leads a session of its own, dies with its parent, leaves no core dump, and is the first that the kernel picks when
memory runs out. Where it can hold an address-space limit (no GPU maps the whole of one), memory that is asked for and
never touched has an end too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from tuning.static.recorded import CompileRequest
from tuning.workers import messages
from tuning.workers.messages import Broken, Compiled, Load, Ready, Reply, Request, RunRace, Stage, Start, Try

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h


def limit_damage(address_space: bool) -> None:
    """Bound what a candidate can take from the rest of the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not on every system, and not in every container
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    if address_space and sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        room = os.sysconf("SC_PAGE_SIZE") * (pages + os.sysconf("SC_PHYS_PAGES"))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (room if hard == resource.RLIM_INFINITY else min(room, hard), hard))


@functools.cache
def compile_the_same_every_time() -> None:
    """Have processes that this one begins laid out alike, where Linux lets it.

    What ptxas makes of equal PTX follows from where its memory lies: rg_lru_gates_chunks on sm_90 has 123 registers in
    some of its runs and 126 in others.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.personality(library.personality(0xFFFFFFFF) | ADDR_NO_RANDOMIZE)


class Server:
    """Answers requests one after the other. say: called with every stage as it begins."""

    def __init__(self, say: Callable[[Reply], None]) -> None:
        self.say = say

    def answer(self, request: Request) -> Reply:
        """Do what is asked."""
        match request:
            case Try():
                return self.executor.attempt(request)
            case RunRace():
                return self.executor.race(request)
            case CompileRequest(target=""):
                return self.executor.first_call(request)
        try:
            match request:
                case CompileRequest():
                    return self._compile(request)
                case Start():
                    self._start(request)
                case Load():
                    self.executor.load(request)
        except Exception as error:  # whatever importing, preparing and compilers raise
            return Broken(f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}")
        return Ready()

    def _start(self, request: Start) -> None:
        import torch

        from griffin_kernels import device as devices
        from griffin_kernels import misses, poison
        from tuning.workers.executor import InProcessExecutor

        warnings.simplefilter("ignore")  # a worker has nobody to warn; what goes wrong is in its answers
        os.environ.pop(misses.ENVIRONMENT_VARIABLE, None)  # calls of the tuner are no misses to record
        torch.set_num_threads(request.threads)
        if request.prepare:
            module, _, function = request.prepare.partition(":")
            getattr(importlib.import_module(module), function)()
        device = devices.detect(request.device)
        if device.kind != "cpu":
            torch.cuda.set_device(device.torch_device)
        limit_damage(address_space=device.kind == "cpu")
        with poison.poisoned():
            pass  # torch imports its compiler for it: seconds that would count as the first candidate's
        self.executor = InProcessExecutor(device, self.say)
        gc.freeze()  # what is imported stays: looking through it after every case costs a quarter of a second

    def _compile(self, request: CompileRequest) -> Compiled:
        from griffin_kernels import catalog
        from tuning.measure import correctness
        from tuning.static.requests import compiled
        from tuning.static.targets import target

        compile_the_same_every_time()
        self.say(Stage("compile"))
        if request.until != "cached":
            return Compiled(compiled(request))
        variant, device = catalog.variant(request.variant), target(request.target).device
        for case in correctness.cases(request.case):
            # the correctness check leaves out what the variant refuses
            if variant.reject(case, device, variant.parse_config(request.config)) is None:
                compiled(msgspec.structs.replace(request, case=case))
        return Compiled()


def main(descriptor: int, parent: int) -> None:
    """Serve until the other end of the channel is closed."""
    if sys.platform == "linux":  # the kernel kills this process when it kills the parent
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which is gone already
        os._exit(1)
    limit_damage(address_space=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tuner's to handle
    channel = Connection(descriptor)
    server = Server(partial(messages.send, channel))
    for request in messages.requests(channel):
        server.say(server.answer(request))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
