"""The candidates of one op and case on one SKU: described, guessed, compiled, predicted, and one chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from griffin_kernels.contract import Case, Op, Variant, config_dict, config_key
from griffin_kernels.launch import described_for
from tuning.plan.budget import INDIFFERENCE
from tuning.plan.planner import Job, Planned
from tuning.predict.estimated_code import EstimatedCode
from tuning.predict.launch_work import LaunchWork, Work, of_steps
from tuning.predict.time_model import Constants, Machine, Prediction, does_not_fit, predict
from tuning.static.describe import meta_call
from tuning.static.recorded import CompileRequest, StaticReport

Status = Literal["predicted", "guessed", "dropped"]

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


class CandidateRecord(msgspec.Struct, frozen=True, kw_only=True):
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


@dataclass
class TargetSpace:
    """One op and case: its candidates on one SKU. default: what dispatch would run untuned, if that is a candidate.

    unfit: variants that could be compiled but run no configuration here, with the reason.
    """

    op: Op
    case: Case
    where: Machine
    constants: Constants
    candidates: list[TargetCandidate]
    default: TargetCandidate | None = None
    unfit: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, where: Machine, constants: Constants, estimates: EstimatedCode) -> TargetSpace:
        """Every candidate of a job that can be compiled, described and guessed."""
        able = [p for p in job.candidates if p.variant.launches is not None]
        unfit = {p.variant.name: p.reason for p in able if p.reason is not None}
        call = meta_call(job.op, job.case) if any(p.reason is None for p in able) else None
        found = cls(job.op, job.case, where, constants, [], unfit=unfit)
        for planned in able:
            if planned.reason is None:
                steps = described(planned.variant, job.op, job.case, planned.config, where.arch, call)
                candidate = TargetCandidate(planned, steps, found._guess(steps, estimates))
                found.candidates.append(candidate)
                if planned is job.default:
                    found.default = candidate
        return found

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
        return [
            CandidateRecord(
                variant=c.planned.variant.name,
                config=config_dict(c.planned.config),
                status=c.status,
                is_default=c is self.default,
                guessed_s=c.guessed_s if math.isfinite(c.guessed_s) else None,
                prediction=c.prediction,
                reason=c.reason,
            )
            for c in self.candidates
        ]
