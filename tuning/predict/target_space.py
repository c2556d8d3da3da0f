"""The candidates of one op and case on one SKU: described, guessed, compiled, predicted, and one chosen.

Guessed machine code of launches that are not compiled yet orders what to compile, and is never a result. The recorded
table has the default configuration of every kernel. Instructions, registers and shared memory of another configuration
are taken to follow the elements of a thread (tile / threads), as loops over a thread's elements are unrolled; a kernel
that no table has gets the figures of a plain one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from griffin_kernels.contract import Case, Op, Variant, config_dict, config_key
from griffin_kernels.launch import described_for
from tuning.plan.budget import INDIFFERENCE
from tuning.plan.planner import Job, Planned
from tuning.predict.launch_work import LaunchWork, Work, of_steps
from tuning.predict.time_model import Constants, Machine, Prediction, does_not_fit, predict
from tuning.static import recorded
from tuning.static.describe import meta_call
from tuning.static.recorded import CompileRequest, StaticReport

Status = Literal["predicted", "guessed", "dropped"]

BASE_REGISTERS = 16
"""Registers for addresses and counters, whatever the tile."""

MOST_REGISTERS = 255
"""Of a thread; what is above is spilled, four bytes each."""

PLAIN_PER_ELEMENT = 15.0
"""Instructions per element of a kernel of which nothing is known: see the forms of linear_scan in the table."""

MIX = (
    *("async_copies", "global_loads", "global_stores", "shared_loads", "shared_stores", "matrix"),
    *("special", "shuffles", "barriers", "scalar", "local_memory", "multiply_adds"),
)

Reports = Mapping[str, StaticReport | str]
"""What compiling gave by key of a launch: a report, or why there is none."""


def described(variant: Variant, op: Op, case: Case, config: object, arch: str, call: Any = None) -> list[Work]:
    """What the steps of a candidate have to do on an architecture. call: on torch's meta device, made if absent."""
    assert variant.launches is not None, f"{variant.key} has nothing to compile"
    call = meta_call(op, case) if call is None else call
    with described_for(arch):
        return of_steps(variant, op, case, config, call, variant.launches(call, {}, config))


def launches_of(steps: Iterable[Work]) -> list[LaunchWork]:
    return [step for step in steps if isinstance(step, LaunchWork)]


def requests(
    variant: Variant, case: Case, config: dict[str, Any], steps: Iterable[Work], arch: str
) -> Iterator[tuple[str, CompileRequest]]:
    """(key, what to ask the compiler) for every launch among the steps of a candidate."""
    for work in launches_of(steps):
        yield work.key, CompileRequest(variant.key, case, config, arch, work.index)


def compiled(steps: Iterable[Work], reports: Reports, where: Machine) -> dict[str, StaticReport] | str | None:
    """The machine code of every launch by key; why one cannot run on the device; else None where some is missing."""
    code: dict[str, StaticReport] = {}
    for work in launches_of(steps):
        report = reports.get(work.key)
        if isinstance(report, StaticReport):
            if (problem := does_not_fit(work, report, where)) is not None:
                return problem
            code[work.key] = report
        elif report is not None:
            return report
    return code if all(work.key in code for work in launches_of(steps)) else None


_recorded = functools.cache(recorded.load)


class EstimatedCode:
    """Guessed machine code by kernel name, from reports on other configurations or architectures."""

    def __init__(self, where: Machine) -> None:
        """For a SKU, from the recorded table."""
        self.arch, self.warp_size = where.arch, where.limits.warp_size
        self._known: dict[str, list[StaticReport]] = {}
        # another vendor's code tells nothing
        self.learn(report for report in _recorded().reports if report.target[:3] == self.arch[:3])

    def learn(self, reports: Iterable[StaticReport]) -> None:
        """Take reports into account from now on, the later before the earlier."""
        for report in reports:
            if report.instructions_per_element:
                self._known.setdefault(report.kernel, []).insert(0, report)  # the newest wins ties

    def __call__(self, work: LaunchWork) -> StaticReport:
        threads = work.num_warps * self.warp_size

        def far(report: StaticReport) -> tuple[bool, float]:
            """Whether of another architecture, then how many elements per thread and warps it is off."""
            assert report.instructions_per_element is not None
            elements = report.loop_instructions / report.instructions_per_element
            warps = abs(math.log2(report.num_warps / work.num_warps))
            return report.target != self.arch, abs(math.log2(elements / (work.tile / threads))) + warps / 2

        known = min(self._known.get(work.name, ()), key=far, default=None) if work.tile else None
        mix: dict[str, int]
        if known is None or not known.instructions_per_element:
            each = max(1.0, work.tile / threads)
            loop = round(PLAIN_PER_ELEMENT * each)
            instructions, spill_bytes, shared_bytes, load_bits = loop + 100, 0, 0, {128: 1}
            mix = dict.fromkeys(MIX, 0) | {"global_loads": max(1, round(each / 4)), "multiply_adds": round(2 * each)}
            registers = BASE_REGISTERS + round(2 * each)
        else:
            scale = work.tile / threads * known.instructions_per_element / known.loop_instructions
            loop = max(1, round(known.loop_instructions * scale))
            instructions, load_bits = max(2, round(known.instructions * scale)), known.load_bits
            mix = {name: round(count * scale) for name, count in known.mix.items()}
            registers = BASE_REGISTERS + round(max(0, known.registers - BASE_REGISTERS) * scale)
            shared_bytes = round(known.shared_bytes / known.num_warps * scale * work.num_warps)
            spill_bytes = max(0, registers - MOST_REGISTERS) * 4
        nameless: dict[str, Any] = dict.fromkeys(("op", "variant", "case", "config", "target"), "")
        return StaticReport(
            **nameless, kernel=work.name, registers=min(MOST_REGISTERS, registers), spill_bytes=spill_bytes,
            shared_bytes=shared_bytes, num_warps=work.num_warps, instructions=instructions, loop_instructions=loop,
            instructions_per_element=None, mix=mix, load_bits=load_bits,
        )  # fmt: skip


class CandidateRecord(msgspec.Struct, frozen=True):
    """A candidate as ``griffin tune --target`` records it; the fields are those of ``TargetCandidate``."""

    variant: str
    config: dict[str, object]
    status: Status
    is_default: bool = False
    guessed_s: float | None = None
    prediction: Prediction | None = None
    reason: str = ""


@dataclass
class TargetCandidate:
    """One configuration of one variant. guessed_s: predicted without machine code; infinite where that does not fit.

    status: ``predicted`` from machine code, ``guessed`` (never compiled), or ``dropped`` (reason says why).
    """

    planned: Planned
    steps: list[Work]
    guessed_s: float
    status: Status = "guessed"
    reason: str = ""
    prediction: Prediction | None = None

    @property
    def name(self) -> str:
        return f"{self.planned.variant.name} [{config_key(self.planned.config)}]"

    @property
    def predicted(self) -> Prediction:
        """The prediction of a candidate that has one."""
        assert self.prediction is not None, f"{self.name} was never compiled"
        return self.prediction


class TargetSpace:
    """One op and case: its candidates on one SKU. default: what dispatch would run untuned, if that is a candidate.

    unfit: variants that could be compiled but run no configuration here, with the reason.
    """

    def __init__(self, job: Job, where: Machine, constants: Constants, estimates: EstimatedCode) -> None:
        """Every candidate of a job that can be compiled, described and guessed."""
        self.op, self.case, self.where, self.constants = job.op, job.case, where, constants
        able = [p for p in job.candidates if p.variant.launches is not None]
        self.unfit = {p.variant.name: p.reason for p in able if p.reason is not None}
        call = meta_call(job.op, job.case) if len(self.unfit) < len(able) else None
        self.candidates: list[TargetCandidate] = []
        for planned in able:
            if planned.reason is None:
                steps = described(planned.variant, job.op, job.case, planned.config, where.arch, call)
                self.candidates.append(TargetCandidate(planned, steps, self._guess(steps, estimates)))
        self.default = next((c for c in self.candidates if c.planned is job.default), None)

    def _predict(self, steps: Sequence[Work], code: Mapping[str, StaticReport]) -> Prediction:
        return predict(steps, lambda work: code[work.key], self.where, self.case.dtype, self.constants)

    def _guess(self, steps: Sequence[Work], estimates: EstimatedCode) -> float:
        code = compiled(steps, {work.key: estimates(work) for work in launches_of(steps)}, self.where)
        if not isinstance(code, dict):
            return math.inf
        found = self._predict(steps, code)
        # a guess of spills is a guess of a bad kernel
        return found.seconds * (2.0 if found.spill_bytes else 1.0)

    def guess_again(self, estimates: EstimatedCode) -> None:
        """Guess those that were not compiled anew, after more was learnt."""
        for candidate in self.with_status("guessed"):
            candidate.guessed_s = self._guess(candidate.steps, estimates)

    def with_status(self, status: Status) -> list[TargetCandidate]:
        return [candidate for candidate in self.candidates if candidate.status == status]

    def order(self) -> list[TargetCandidate]:
        """What to compile next, in order: the default, the best guess of each variant, then all by their guess."""
        by_guess = sorted(self.candidates, key=lambda candidate: candidate.guessed_s)
        first_of: dict[str, TargetCandidate] = {}
        for candidate in by_guess:
            first_of.setdefault(candidate.planned.variant.name, candidate)
        default = [self.default] if self.default is not None else []
        ordered = [*default, *first_of.values(), *by_guess]
        return list({id(candidate): candidate for candidate in ordered if candidate.status == "guessed"}.values())

    def requests(self, candidates: Iterable[TargetCandidate]) -> Iterator[tuple[str, CompileRequest]]:
        """(key, what to ask the compiler) for every launch of candidates."""
        for candidate in candidates:
            variant, config = candidate.planned.variant, config_dict(candidate.planned.config)
            yield from requests(variant, self.case, config, candidate.steps, self.where.arch)

    def take_reports(self, reports: Reports) -> None:
        """Predict every candidate whose launches are all compiled, and drop those that failed or do not fit."""
        for candidate in self.with_status("guessed"):
            code = compiled(candidate.steps, reports, self.where)
            if isinstance(code, str):
                candidate.status, candidate.reason = "dropped", code
            elif code is not None:
                candidate.status, candidate.prediction = "predicted", self._predict(candidate.steps, code)

    def ranked(self) -> list[TargetCandidate]:
        """Those predicted from machine code, best first: without flaws before those with any, then by time."""
        found = [c for c in self.candidates if c.prediction is not None]
        return sorted(found, key=lambda c: (c.predicted.flawed, c.predicted.seconds))

    def choose(self) -> TargetCandidate | None:
        """The best; the default where the best is not predicted to be clearly faster. None where nothing is known."""
        best, default = next(iter(self.ranked()), None), self.default
        if best is not None and default is not None and default.prediction is not None:
            clean = not default.prediction.flawed or best.predicted.flawed
            if clean and default.prediction.seconds <= best.predicted.seconds * (1 + INDIFFERENCE):
                return default
        return best

    def records(self) -> list[CandidateRecord]:
        """All candidates as they are recorded."""
        found = []
        for c in self.candidates:
            variant, config = c.planned.variant.name, config_dict(c.planned.config)
            guess = c.guessed_s if math.isfinite(c.guessed_s) else None
            found.append(CandidateRecord(variant, config, c.status, c is self.default, guess, c.prediction, c.reason))
        return found
