"""Tuning for a GPU that is not there: ``griffin tune --target SKU``, and predicted times for the tuner and commands.

For every op and bench case the candidates' times are first estimated without machine code. The best are compiled for
the SKU's architecture, and the time model (``tuning.predict.time_model``) predicts them from their machine code.
Candidates that do not fit are dropped. Candidates that spill registers or serialise their products rank behind all
others. The entries of the resulting registry have status ``predicted``; a machine of that SKU uses them until measured
entries replace them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console

from griffin_kernels import datasheet, errors, registry, validity
from griffin_kernels.contract import Case, config_dict
from griffin_kernels.device import Device
from griffin_kernels.records import Entry
from griffin_kernels.texts import now
from roofline.console import StatusLine, line
from roofline.study_records import Uncertainty
from roofline.units import clock_text, seconds_text
from roofline.validation import of_kernel
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import time_model
from tuning.predict.target_space import CandidateRecord, EstimatedCode, Reports, TargetCandidate, TargetSpace
from tuning.predict.time_model import Constants
from tuning.record.paths import Paths
from tuning.static.recorded import CompileRequest, StaticReport
from tuning.workers import compile_farm


class Effort(NamedTuple):
    """How much is compiled. per_case: candidates of a case, 0 for all. more: further ones where others spill or fail.

    until, more_until: seconds of the run after which no candidate of per_case, and none of more, is begun.
    """

    per_case: int
    until: float | None
    more: int = 0
    more_until: float = 0.0


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(2, 150.0, 4, 200.0),
    "default": Effort(6, 440.0, 8, 520.0),
    "thorough": Effort(0, None),
}
"""Efforts by the name of the budget. The default ends within ten minutes on two cores, whatever they are."""

NOTE_EVERY_S = 15.0
"""Seconds between lines about progress where there is no terminal."""

PREDICTIONS_VERSION = 1
"""Version of the file of predictions."""


class Predicted(msgspec.Struct, frozen=True):
    """One op and case: every candidate, and which was chosen (an index; None where no variant can run).

    uncertainty: of the chosen one's time, by what was published.
    """

    op: str
    case: Case
    candidates: list[CandidateRecord]
    chosen: int | None
    unfit: dict[str, str] = {}
    uncertainty: Uncertainty | None = None


class PredictionsFile(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one ``griffin tune --target`` found; the registry beside it has the choices alone."""

    version: int
    sku: str
    arch: str
    date: str
    triton: str
    budget: str
    constants: Constants
    seconds: float
    compiled: int
    complete: bool
    cases: list[Predicted]


class TargetOutcome(NamedTuple):
    """What a run leaves. missing: ops and cases without an entry, in words."""

    registry: Path
    predictions: Path
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    seconds: float


def tune_target(
    sku: str,
    options: Options,
    out: Path | None,
    console: Console,
    *,
    constants: Constants | None = None,
    jobs: int = 0,
) -> TargetOutcome:
    """Predict the best kernels of a SKU and publish them as a registry.

    options: ops, cases, dtypes and the budget count; the device is the SKU. out: folder; the user's own registry
    without one. constants: of the SKU without any. jobs: compiling processes, one per usable core for 0.
    Raises UnknownDevice, DeviceError (no GPU that kernels can be compiled for), OutputFolderError, RegistryError, or
    what ``planner.make`` raises. An interrupt leaves no process behind, and nothing is published.
    """
    began = time.monotonic()
    where = time_model.machine(sku)
    constants = constants or where.constants
    if options.device:
        raise errors.ArgumentError(f"--device {options.device} and --target {sku} exclude each other")
    options.limits()  # an unknown budget is refused first
    effort, device = EFFORTS[options.budget], where.device
    paths = Paths.choose(out, device)
    paths.make_folders()
    if paths.registry.exists():
        facts = registry.load(paths.registry).device.validity
        if facts != device.validity() and not validity.same_sku(facts, device.validity()):
            what = f"registry {paths.registry} is of another device ({validity.named(facts)})"
            raise errors.RegistryError(f"{what}; choose another folder with --out")
    estimates = EstimatedCode(where)
    spaces = [TargetSpace(job, where, constants, estimates) for job in planner.make(options, device)]
    count = sum(len(space.candidates) for space in spaces)
    line(console, f"predicting {len(spaces)} cases on {where.sheet.name} ({where.arch}): {count} candidates")
    reports, complete = compile_rounds(spaces, estimates, effort, began, console, jobs)
    choices = [(space, space.choose()) for space in spaces]
    entries = tuple(entry(space, chosen, sku) for space, chosen in choices if chosen is not None)
    missing = tuple(f"{space.op.name} {space.case.key}: {_why_none(space)}" for space, c in choices if c is None)
    found = PredictionsFile(
        version=PREDICTIONS_VERSION,
        sku=sku,
        arch=where.arch,
        date=now(),
        triton=metadata.version("triton"),
        budget=options.budget,
        constants=constants,
        seconds=time.monotonic() - began,
        compiled=len(reports),
        complete=complete,
        cases=[
            Predicted(
                s.op.name,
                s.case,
                s.records(),
                None if c is None else s.candidates.index(c),
                s.unfit,
                None if c is None else _uncertainty(c, sku),
            )
            for s, c in choices
        ],
    )
    name = "predictions.json" if out is None else f"{device.slug}.predictions.json"
    predictions = paths.journal.with_name(name)
    registry.write_atomically(predictions, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if entries:
        versions = {"torch": str(torch.__version__), "triton": found.triton}
        facts = {"date": found.date, **versions, "predicted_for": sku, "constants": msgspec.to_builtins(constants)}
        registry.publish(paths.registry, device, entries, facts)
    for text in missing:
        line(console, f"no kernel for {text}")
    return TargetOutcome(paths.registry, predictions, entries, missing, found.seconds)


def compile_rounds(
    spaces: Sequence[TargetSpace], estimates: EstimatedCode, effort: Effort, began: float, console: Console, jobs: int
) -> tuple[Reports, bool]:
    """(reports by key, whether all that was meant to be compiled was); every candidate that can be is predicted.

    Every case's best guess goes before the second best of any. Half way the estimates learn from what was compiled.
    """
    reports: dict[str, StaticReport | str] = {}

    def compile_next(chosen: Sequence[TargetSpace], size: int, until: float | None) -> Sequence[str]:
        """Compile the next candidates of some cases and predict them; the keys of what was wanted."""
        ordered = [(space, space.order()) for space in chosen]
        wanted: dict[str, CompileRequest] = {}
        for rank in range(size):
            for space, candidates in ordered:
                for key, order in space.requests(candidates[rank : rank + 1]):
                    if key not in reports:
                        wanted.setdefault(key, order)
        left = None if until is None else max(0.0, until - (time.monotonic() - began))
        reports.update(compile_told(wanted, console, jobs, left))
        for space in spaces:
            space.take_reports(reports)
        return list(wanted)

    most = effort.per_case or max((len(space.candidates) for space in spaces), default=0)
    complete = True
    for size in (most - most // 2, most // 2):
        wanted = compile_next(spaces, size, effort.until)
        estimates.learn(found for key in wanted if isinstance(found := reports.get(key), StaticReport))
        for space in spaces:
            space.guess_again(estimates)
        complete = all(key in reports for key in wanted)
        if not complete:
            break  # time is up
    for _ in range(effort.more):
        spilling = [space for space in spaces if not (best := space.ranked()[:1]) or best[0].predicted.spill_bytes]
        if time.monotonic() - began >= effort.more_until or not compile_next(spilling, 1, effort.more_until):
            break
    return reports, complete


def compile_told(
    wanted: Mapping[str, CompileRequest], console: Console, jobs: int = 0, seconds: float | None = None
) -> dict[str, StaticReport | str]:
    """Compile within ``seconds``, and say how far it is. jobs: processes, one per usable core for 0."""
    reports: dict[str, StaticReport | str] = {}
    if not wanted:
        return reports
    status, told, first = StatusLine(console), time.monotonic(), time.monotonic()
    for key, report in compile_farm.compile_all(list(wanted.items()), jobs, seconds):
        reports[key] = report
        now = time.monotonic()
        left = (now - first) / len(reports) * (len(wanted) - len(reports))
        if seconds is not None:
            left = min(left, max(0.0, seconds - (now - first)))
        text = f"compiled {len(reports)} of {len(wanted)} kernels, about {clock_text(left)} left"
        if console.is_terminal:
            status(text)
        elif now - told > NOTE_EVERY_S:
            told = now
            line(console, text)
    status.clear()
    if len(reports) < len(wanted):
        done = f"{len(reports)} of {len(wanted)} kernels compiled"
        line(console, f"time is up: {done}, the best guesses of each case first")
    return reports


def show_target_plan(console: Console, sku: str, options: Options) -> None:
    """Print what ``tune_target`` would compile; nothing is compiled or written."""
    where = time_model.machine(sku)
    jobs = planner.make(options, where.device)
    for job in jobs:
        able = [p for p in job.candidates if p.variant.launches is not None and p.reason is None]
        line(console, f"{job.op.name} {job.case.key}: {len(able)} candidates")
    per_case = EFFORTS[options.budget].per_case
    most = f"at most {per_case}" if per_case else "all"
    line(console, f"{len(jobs)} cases on {where.sheet.name}; of each, {most} candidates would be compiled")


def expected(job: planner.Job, device: Device) -> dict[int, float]:
    """id of a candidate of a job -> seconds that the model expects on a device, its machine code guessed.

    Good enough to order what to try first, and made in milliseconds each. Without an entry: what the model knows
    nothing of, or does not expect to fit; empty where the device has no datasheet.
    """
    sheet = datasheet.find(device.name)
    if sheet is None:
        return {}
    try:
        where = time_model.machine(sheet.sku)
    except errors.DeviceError:  # of a kind that Triton does not compile for
        return {}
    found = TargetSpace(job, where, where.constants, EstimatedCode(where))
    return {id(c.planned): c.guessed_s for c in found.candidates if math.isfinite(c.guessed_s)}


def compiled_space(
    job: planner.Job, sku: str, constants: Constants | None = None, *, jobs: int = 0, most: int = 0
) -> TargetSpace:
    """The candidates of one job on a SKU, the ``most`` best estimates compiled (all for 0) and predicted."""
    where = time_model.machine(sku)
    found = TargetSpace(job, where, constants or where.constants, EstimatedCode(where))
    candidates = found.order()
    requests = dict(found.requests(candidates[:most] if most else candidates))
    found.take_reports(dict(compile_farm.compile_all(list(requests.items()), jobs)))
    return found


def entry(space: TargetSpace, chosen: TargetCandidate, sku: str) -> Entry:
    """A registry's entry of what was chosen for a case."""
    variant, found = chosen.planned.variant, chosen.predicted
    return Entry(
        op=space.op.name,
        case=space.case,
        variant=variant.name,
        config=config_dict(chosen.planned.config),
        status="predicted",
        source_hash=variant.source_hash,
        date=now(),
        reason=reason(space, chosen, sku),
        candidates=len(space.candidates),
        bound=found.bound,
        predicted_s=found.seconds,
    )


def reason(space: TargetSpace, chosen: TargetCandidate, sku: str) -> str:
    """Why a candidate was chosen, in words."""
    ranked, found, default = space.ranked(), chosen.predicted, space.default
    best, main = ranked[0], found.main
    spills = f"{found.spill_bytes} bytes spilled" if found.spill_bytes else "no spills"
    waiting = ", serialised products" if found.serialised else ""
    parts = [
        f"predicted for {sku}, not measured: {seconds_text(found.seconds)}, bound by {found.bound}",
        f"uncertainty {_uncertainty(chosen, sku).text}",
        f"{main.registers} registers, {spills}{waiting}, {main.occupancy:.0%} occupancy",
    ]
    if chosen is default and best is not chosen:
        ahead = found.seconds / best.predicted.seconds - 1
        parts.append(f"the default, kept: {best.name} is predicted to be only {ahead:.1%} faster")
    elif chosen is default:
        parts.append("the default, predicted to be the fastest")
    elif default is not None and default.prediction is not None:
        flaw = "spills" if default.prediction.spill_bytes else "serialises its products"
        more = f" (which {flaw})" if default.prediction.flawed and not found.flawed else ""
        parts.append(f"{default.prediction.seconds / found.seconds:.2f}x the default {default.name}{more}")
    parts.append(f"{len(ranked)} of {len(space.candidates)} candidates compiled")
    return "; ".join(parts)


def _uncertainty(chosen: TargetCandidate, sku: str) -> Uncertainty:
    found = chosen.predicted
    return of_kernel(sku, found.bound, found.seconds, flawed=found.flawed)


def _why_none(space: TargetSpace) -> str:
    """Why a case has no entry."""
    if not space.candidates:
        reasons = [f"{name}: {why}" for name, why in space.unfit.items()]
        return "; ".join(reasons) or "it has no Triton variant"
    if dropped := space.with_status("dropped"):
        return f"{len(dropped)} candidates were dropped, the first because {dropped[0].reason}"
    return "time was up before a candidate was compiled"
