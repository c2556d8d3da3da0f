"""Runs candidates in this process: holds one case's inputs on one device, checks and times candidates, races finalists.

A worker process holds an InProcessExecutor (``tuning.workers.server``); the tuner itself holds one with
``--in-process``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from griffin_kernels import catalog, dispatch, registry, verify
from griffin_kernels.device import Device
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile
from tuning.measure import conditions, correctness, rounds, timing
from tuning.plan.budget import SLOW_FACTOR
from tuning.plan.planner import Planned
from tuning.record.journal_records import OutputError, Status
from tuning.static.recorded import CompileRequest
from tuning.workers.messages import Broken, Compiled, Load, Raced, RunRace, Stage, Tried, Try

STICKY = re.compile(
    r"illegal memory access|illegal address|misaligned address|illegal instruction|device-side assert|"
    r"unspecified launch failure|launch timed out|hardware (stack|exception)|uncorrectable ECC|"
    r"invalid program counter|HSA_STATUS_ERROR|Memory access fault",
    re.IGNORECASE,
)
"""Errors of a GPU after which its context is lost: CUDA C++ programming guide, error handling, and ROCm's like them."""

NO_MEMORY = re.compile(r"out of memory|(can.t|cannot|unable to) allocate|bad_alloc", re.IGNORECASE)


def broken(error: BaseException, index: int = -1) -> Broken:
    """An exception in one line, and the status of a candidate that raised it. index: of the finalist, if one did."""
    status: Status = "crashed" if STICKY.search(str(error)) else "failed"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error)):
        status = "memory"
    return Broken(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".rstrip(": "), status, index)


class InProcessExecutor:
    """Runs candidates in this process. tell: called with every stage as it begins."""

    def __init__(self, device: Device, tell: Callable[[Stage], None] = lambda stage: None) -> None:
        self.device, self.tell = device, tell
        self._overlay = contextlib.ExitStack()

    def load(self, request: Load) -> None:
        """Take up a case. Inputs and reference are made when the first candidate needs them."""
        self.close()
        self.op, self.case = catalog.op(request.op), request.case
        self._overlay.enter_context(self._tuned(request.entries))

    def replace(self) -> None:
        """Does nothing: there is only this process."""

    def close(self) -> None:
        """Give up the case's memory, and what was tuned so far."""
        self.__dict__.pop("problems", None)
        self.__dict__.pop("rotation", None)
        self._overlay.close()
        gc.collect()

    def _tuned(self, entries: Sequence[Entry]) -> contextlib.AbstractContextManager[None]:
        """Make dispatch use this run's entries, and no registry of this machine."""
        device = DeviceRecord(self.device.validity(), {})
        file = RegistryFile(schema_version=SCHEMA_VERSION, device=device, entries=list(entries))
        return dispatch.use(registry=registry.Registry(self.device, [("this run", file)]))

    @functools.cached_property
    def problems(self) -> list[correctness.Problem]:
        return correctness.problems(self.op, self.case, self.device)

    @functools.cached_property
    def rotation(self) -> timing.Rotation:
        made = self.problems[0].inputs if "problems" in self.__dict__ else None
        inputs = made or self.op.make_inputs(self.case, self.device.torch_device, 0)
        # what the op changes in place is copied: the problem's own tensors are what later candidates are checked on
        own = {name: verify.copy_of(inputs[name]) for name in self.op.in_place}
        return timing.copies({**inputs, **own}, self.device, self.op.call)

    def attempt(self, request: Try) -> Tried | Broken:
        """Check one candidate and, where it is right, time it. Broken: the case's own inputs cannot be made."""
        planned = _planned(request.variant, request.config)
        stage = "compile"

        def enter(name: str, seconds: float = 0.0) -> None:
            nonlocal stage
            stage = name
            self.tell(Stage(name, seconds=seconds))

        try:
            problems = self.problems
        except Exception as error:  # whatever making inputs raises is not the candidate's fault
            return broken(error)
        try:
            enter("compile")
            began = time.monotonic()
            verdict = self._check(planned, problems[0])
            if verdict.ok and len(problems) > 1:
                enter("check", time.monotonic() - began)
            for problem in problems[1:]:
                # another shape would be compiled again by torch.compile, and may be refused
                refused = planned.variant.reject(problem.case, self.device, planned.config) is not None
                if verdict.ok and planned.variant.backend != "compiled" and not refused:
                    second = self._check(planned, problem)
                    verdict = verdict if second.ok else second
            errors = [OutputError(e.output, e.rel_norm, e.worst) for e in verdict.errors]
            if not verdict.ok:
                # a kernel that writes what is wrong may have written where it should not
                return Tried("wrong", stage, verdict.problem, errors, tainted=True)
            enter("time", time.monotonic() - began)
            samples, cut_off = sample(self.sampler(planned), request)
            self._synchronize()
        except Exception as error:  # whatever a kernel raises is that kernel's result
            bad = broken(error)
            return Tried(bad.status, stage, bad.problem, tainted=bad.status != "failed")
        if cut_off:
            return Tried("slow", stage, f"more than {SLOW_FACTOR:g} times slower than the best so far", errors, samples)
        return Tried("ok", "", None, errors, samples)

    def _check(self, planned: Planned, problem: correctness.Problem) -> verify.Verdict:
        verdict = correctness.check(self.op, planned, problem)
        self._synchronize()
        return verdict

    def first_call(self, request: CompileRequest) -> Compiled | Broken:
        """Call a variant once on inputs of its own, with nothing tuned yet for what it calls."""
        planned = _planned(request.variant, request.config)
        try:
            inputs = catalog.op(planned.variant.op).make_inputs(request.case, self.device.torch_device, 0)
            self.tell(Stage("compile"))
            with self._tuned([]):
                planned.variant.on(inputs, planned.config)
            self._synchronize()
        except Exception as error:  # whatever a kernel, or making its inputs, raises
            return broken(error)
        return Compiled()

    def sampler(self, planned: Planned) -> timing.Sampler:
        """Times calls with cold caches; of a baseline behind an adapter what is its own work."""
        adapter = planned.variant.adapter
        if adapter is not None:
            given = timing.Rotation([adapter.prepare(call) for call in self.rotation])
            return timing.sampler(lambda prepared: adapter.call(**prepared), given, self.device)
        return timing.sampler(functools.partial(planned.variant.run, config=planned.config), self.rotation, self.device)

    def warm_sampler(self, planned: Planned) -> timing.Sampler:
        """Times calls with the same inputs each time, which should follow each other."""
        run = functools.partial(planned.variant.run, config=planned.config)
        return timing.warm_sampler(run, self.rotation, self.device)

    def race(self, request: RunRace) -> Raced | Broken:
        """Race finalists; where one raises, Broken tells which."""
        at = -1

        def announce(index: int) -> None:
            nonlocal at
            if index != at:
                at = index
                self.tell(Stage("race", index))

        try:
            cold: list[timing.Sampler] = []
            warm: list[Callable[[], timing.Sampler] | None] = []
            for index, finalist in enumerate(request.field):
                announce(index)
                planned = _planned(f"{self.op.name}/{finalist.record.variant}", finalist.record.config)
                cold.append(self.sampler(planned))
                warm.append(None if finalist.record.baseline else functools.partial(self.warm_sampler, planned))
            before = conditions.read(self.device)
            run = rounds.run(self.op, self.case, request.field, cold, request.budget, warm=warm, announce=announce)
            self._synchronize()
            run = msgspec.structs.replace(run, before=before, after=conditions.read(self.device))
        except Exception as error:  # as above
            return broken(error, at)
        return Raced(run)

    def _synchronize(self) -> None:
        """Wait for the device, so that an error of this candidate is raised here and not at the next one."""
        if self.device.kind != "cpu":
            torch.cuda.synchronize(self.device.torch_device)


def _planned(variant_key: str, config: dict[str, Any]) -> Planned:
    variant = catalog.variant(variant_key)
    return Planned(variant, variant.parse_config(config))


def sample(sampler: timing.Sampler, request: Try) -> tuple[list[float], bool]:
    """(samples, cut off): samples until the budget is used, or two if those are hopeless."""
    samples: list[float] = []
    budget, best_s = request.budget, request.best_s
    deadline = time.monotonic() + budget.seconds
    while len(samples) < budget.least or (len(samples) < budget.most and time.monotonic() < deadline):
        samples.append(sampler())
        if len(samples) == 2 and not request.patient and best_s is not None and min(samples) > SLOW_FACTOR * best_s:
            return samples, True
    return samples, False
