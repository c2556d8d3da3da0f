"""``python -m tuning.workers.server FD_IN FD_OUT PARENT``: runs candidates, and may be killed at any moment.

It leads a session of its own, dies with its parent, leaves no core dump, and is the first that the kernel picks when
memory runs out. Where it can hold an address-space limit (no GPU maps the whole of one), memory that is asked for and
never touched has an end too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tuning.workers.messages import (
    Broken,
    Compile,
    Contender,
    FirstCall,
    Load,
    Ready,
    Reply,
    Request,
    RunRace,
    Start,
    Try,
    packed,
    requests,
)

if TYPE_CHECKING:
    from tuning.measure.rounds import Finalist

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Be killed by the kernel when the parent is; end at once if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


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


class Server:
    """Answers requests one after the other."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def say(self, reply: Reply) -> None:
        self._out.write(packed(reply))
        self._out.flush()

    def answer(self, request: Request) -> None:
        """Do what is asked; the last thing said is the answer."""
        match request:
            case Start():
                try:
                    self._start(request)
                except Exception as error:  # whatever importing and preparing raise
                    self.say(Broken(f"{type(error).__name__}: {error}"))
            case Compile():
                self.say(_compile(request))
            case FirstCall():
                self.say(self.bench.first_call(request.variant, request.case, request.config))
            case Load():
                try:
                    self.bench.load(request.op, request.case, request.entries)
                except Exception as error:  # whatever making inputs raises
                    self.say(Broken(f"{type(error).__name__}: {error}"))
                else:
                    self.say(Ready())
            case Try():
                self.say(
                    self.bench.attempt(request.variant, request.config, request.budget, request.best_s, request.patient)
                )
            case RunRace():
                self.say(self.bench.race([_finalist(contender) for contender in request.field], request.budget))

    def _start(self, request: Start) -> None:
        import gc
        import warnings

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
        self.bench = InProcessExecutor(device, self.say)
        gc.freeze()  # what is imported stays: looking through it after every case costs a quarter of a second
        self.say(Ready())


def _finalist(contender: Contender) -> Finalist:
    """A finalist with its variant, as this process has it."""
    from griffin_kernels import catalog
    from tuning.measure.rounds import Finalist
    from tuning.plan.planner import Planned

    record = contender.record
    variant = catalog.variant(f"{record.op}/{record.variant}")
    return Finalist(Planned(variant, variant.parse_config(record.config)), record, contender.incumbent, contender.place)


def _compile(request: Compile) -> Reply:
    """Fill Triton's cache with every launch of a candidate: of the case, and of its short form where that differs."""
    from griffin_kernels import catalog
    from griffin_kernels.launch import Launch, described_for
    from tuning.measure import correctness
    from tuning.static.compiling import compile_launch
    from tuning.static.describe import meta_call
    from tuning.static.targets import target
    from tuning.workers.executor import in_one_line

    variant = catalog.variant(request.variant)
    if variant.launches is None:
        return Ready()
    goal, config = target(request.arch), variant.parse_config(request.config)
    try:
        with described_for(request.arch):
            for case in correctness.cases(request.case):
                if variant.reject(case, goal.device, config) is not None:
                    continue  # the correctness check leaves it out too
                for step in variant.launches(meta_call(catalog.op(variant.op), case), {}, config):
                    if isinstance(step, Launch):
                        compile_launch(step, goal)
    except Exception as error:  # the compiler raises whatever it likes
        return Broken(in_one_line(error))
    return Ready()


def main(read_end: int, write_end: int, parent: int) -> None:
    """Serve until the other end of the pipe is closed."""
    die_with(parent)
    limit_damage(address_space=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tuner's to handle
    with open(read_end, "rb") as questions, open(write_end, "wb") as answers:
        server = Server(answers)
        for request in requests(questions):
            server.answer(request)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
