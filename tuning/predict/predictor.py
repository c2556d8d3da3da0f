"""Tuning for a GPU that is not there: ``griffin tune --target SKU``, and predicted times for the tuner and commands.

For every op and bench case the candidates' times are first estimated without machine code. The best are compiled for
the SKU's architecture, and the time model (``tuning.predict.time_model``) predicts them from their machine code.
Candidates that do not fit are dropped. Candidates that spill registers or serialise their products rank behind all
others. The entries of the resulting registry have status ``predicted``; a machine of that SKU uses them until measured
entries replace them.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import torch
from rich.console import Console

from griffin_kernels import datasheet, errors, registry, validity
from griffin_kernels.contract import Case, config_dict
from griffin_kernels.device import Device
from griffin_kernels.records import Entry
from griffin_kernels.texts import now
from roofline.console import line
from roofline.units import seconds_text
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import time_model
from tuning.predict.compile_budget import EFFORTS, compile_rounds
from tuning.predict.estimated_code import EstimatedCode
from tuning.predict.target_space import CandidateRecord, TargetCandidate, TargetSpace
from tuning.predict.time_model import ASSUMED, Constants, Machine
from tuning.record.paths import Paths
from tuning.static import recorded
from tuning.workers import compile_farm

PREDICTIONS_VERSION = 1
"""Version of the file of predictions."""


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """One op and case: every candidate, and which was chosen (an index; None where no variant can run)."""

    op: str
    case: Case
    candidates: list[CandidateRecord]
    chosen: int | None
    unfit: dict[str, str] = {}


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


@dataclass(frozen=True)
class TargetOutcome:
    """What a run leaves. missing: ops and cases without an entry, in words."""

    registry: Path
    predictions: Path
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    seconds: float


def tune_target(
    sku: str, options: Options, out: Path | None, console: Console, *, constants: Constants = ASSUMED, jobs: int = 0
) -> TargetOutcome:
    """Predict the best kernels of a SKU and publish them as a registry.

    options: ops, cases, dtypes and the budget count; the device is the SKU. out: folder; the user's own registry
    without one. jobs: compiling processes, one per usable core for 0. Raises UnknownDevice, DeviceError (no GPU that
    kernels can be compiled for), OutputFolderError, RegistryError, or what ``planner.make`` raises. An interrupt leaves
    no process behind, and nothing is published.
    """
    began = time.monotonic()
    where = time_model.machine(sku)
    if options.device:
        raise errors.ArgumentError(f"--device {options.device} and --target {sku} exclude each other")
    options.limits()  # an unknown budget is refused first
    effort, device = EFFORTS[options.budget], where.device
    paths = Paths.choose(out, device)
    paths.make_folders()
    _refuse_other_sku(paths.registry, device)
    estimates = estimates_for(where)
    spaces = [TargetSpace.of(job, where, constants, estimates) for job in planner.make(options, device)]
    count = sum(len(space.candidates) for space in spaces)
    line(console, f"predicting {len(spaces)} cases on {where.sheet.name} ({where.arch}): {count} candidates")
    reports, complete = compile_rounds(spaces, estimates, effort, began, console, jobs)
    choices = [(space, space.choose()) for space in spaces]
    entries = tuple(_entry(space, chosen, sku) for space, chosen in choices if chosen is not None)
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
                op=space.op.name,
                case=space.case,
                candidates=space.records(),
                chosen=None if chosen is None else space.candidates.index(chosen),
                unfit=space.unfit,
            )
            for space, chosen in choices
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
    try:
        where = None if sheet is None else time_model.machine(sheet.sku)
    except errors.DeviceError:  # of a kind that Triton does not compile for
        where = None
    if where is None:
        return {}
    found = TargetSpace.of(job, where, ASSUMED, estimates_for(where))
    return {id(c.planned): c.guessed_s for c in found.candidates if math.isfinite(c.guessed_s)}


def compiled_space(
    job: planner.Job, sku: str, constants: Constants = ASSUMED, *, jobs: int = 0, most: int = 0
) -> TargetSpace:
    """The candidates of one job on a SKU, the ``most`` best estimates compiled (all for 0) and predicted."""
    where = time_model.machine(sku)
    found = TargetSpace.of(job, where, constants, estimates_for(where))
    candidates = found.order()
    requests = dict(found.requests(candidates[:most] if most else candidates))
    found.take_reports(dict(compile_farm.compile_all(list(requests.items()), jobs)))
    return found


def estimates_for(where: Machine) -> EstimatedCode:
    """Guessed machine code for a SKU, from the recorded table."""
    return EstimatedCode(_recorded().reports, where.arch, where.limits.warp_size)


_recorded = functools.cache(recorded.load)


def _refuse_other_sku(path: Path, device: Device) -> None:
    """RegistryError where there is a registry, and it is of another SKU."""
    if path.exists():
        facts = registry.load(path).device.validity
        if facts != device.validity() and not validity.same_sku(facts, device.validity()):
            what = f"registry {path} is of another device ({validity.named(facts)})"
            raise errors.RegistryError(f"{what}; choose another folder with --out")


def _entry(space: TargetSpace, chosen: TargetCandidate, sku: str) -> Entry:
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


def _why_none(space: TargetSpace) -> str:
    """Why a case has no entry."""
    if not space.candidates:
        reasons = [f"{name}: {why}" for name, why in space.unfit.items()]
        return "; ".join(reasons) or "it has no Triton variant"
    if dropped := space.with_status("dropped"):
        return f"{len(dropped)} candidates were dropped, the first because {dropped[0].reason}"
    return "time was up before a candidate was compiled"
