"""Tuning for a GPU that is not there: ``griffin tune --target SKU``, and predicted times for the tuner and commands.

For every op and bench case the candidates' times are first estimated without machine code. The best are compiled for
the SKU's architecture, and the time model (``tuning.predict.time_model``) predicts them from their machine code.
Candidates that do not fit are dropped. Candidates that spill registers or serialise their products rank behind all
others. The entries of the resulting registry have status ``predicted``; a machine of that SKU uses them until measured
entries replace them.
"""

from __future__ import annotations

import datetime
import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
from rich.console import Console
from rich.table import Table

from griffin_kernels import datasheet, errors, registry, validity
from griffin_kernels.contract import Case, config_dict, config_key
from griffin_kernels.device import Device
from griffin_kernels.records import Entry
from roofline.units import clock_text, seconds_text
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import time_model
from tuning.predict.compile_budget import EFFORTS, Effort, compile_rounds, say
from tuning.predict.estimated_code import EstimatedCode
from tuning.predict.target_space import CandidateRecord, TargetCandidate, TargetSpace
from tuning.predict.time_model import ASSUMED, Constants, Machine
from tuning.static import recorded
from tuning.static.recorded import StaticReport
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
    sku: str,
    options: Options,
    out: Path | None,
    console: Console,
    *,
    constants: Constants = ASSUMED,
    jobs: int = 0,
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
    effort = _effort(options.budget)
    device = where.device
    paths = _paths(out, device)
    _prepare(paths, device)
    planned = planner.make(options, device)
    estimates = estimates_for(where)
    spaces = [TargetSpace.of(job, where, constants, estimates) for job in planned]
    count = sum(len(space.candidates) for space in spaces)
    say(console, f"predicting {len(spaces)} cases on {where.sheet.name} ({where.arch}): {count} candidates")
    reports, complete = compile_rounds(spaces, estimates, effort, began, console, jobs)
    entries, missing = [], []
    for space in spaces:
        chosen = space.choose()
        if chosen is None:
            missing.append(f"{space.op.name} {space.case.key}: {_why_none(space)}")
        else:
            entries.append(_entry(space, chosen, sku))
    seconds = time.monotonic() - began
    text = PredictionsFile(
        version=PREDICTIONS_VERSION,
        sku=sku,
        arch=where.arch,
        date=_now(),
        triton=metadata.version("triton"),
        budget=options.budget,
        constants=constants,
        seconds=seconds,
        compiled=len(reports),
        complete=complete,
        cases=[_recorded(space) for space in spaces],
    )
    registry.write_atomically(paths[1], msgspec.json.format(msgspec.json.encode(text), indent=1) + b"\n")
    if entries:
        registry.publish(paths[0], device, entries, _provenance(sku, text))
    for line in missing:
        say(console, f"no kernel for {line}")
    return TargetOutcome(paths[0], paths[1], tuple(entries), tuple(missing), seconds)


def run_target(
    console: Console, sku: str, options: Options, out: Path | None, constants: Path | None, dry_run: bool
) -> None:
    """What ``griffin tune --target`` does: the run, then a table and where the results are."""
    known = time_model.load_constants(constants)
    if dry_run:
        effort = _effort(options.budget)
        where = time_model.machine(sku)
        jobs = planner.make(options, where.device)
        most = f"at most {effort.per_case}" if effort.per_case else "all"
        for job in jobs:
            able = [p for p in job.candidates if p.variant.launches is not None and p.reason is None]
            say(console, f"{job.op.name} {job.case.key}: {len(able)} candidates")
        say(console, f"{len(jobs)} cases on {where.sheet.name}; of each, {most} candidates would be compiled")
        return
    outcome = tune_target(sku, options, out, console, constants=known)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("op", "case", "kernel"):
        table.add_column(name, overflow="fold")
    table.add_column("predicted", justify="right", no_wrap=True)
    table.add_column("bound by")
    for entry in outcome.entries:
        config = ",".join(f"{name}={value}" for name, value in entry.config.items())
        seconds = seconds_text(entry.predicted_s or 0.0)
        table.add_row(entry.op, entry.case.key, f"{entry.variant} {config}", seconds, entry.bound)
    console.print(table)
    say(console, f"{len(outcome.entries)} entries in {clock_text(outcome.seconds)}; nothing was run, all are predicted")
    if outcome.entries:
        say(console, f"registry    {outcome.registry}")
    say(console, f"predictions {outcome.predictions}")


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
    return EstimatedCode(_table(), where.arch, where.limits.warp_size)


@functools.cache
def _table() -> list[StaticReport]:
    return recorded.load().reports


def _effort(budget: str) -> Effort:
    if budget not in EFFORTS:
        raise errors.ArgumentError(f"no budget {budget!r}; there are {', '.join(EFFORTS)}")
    return EFFORTS[budget]


def _paths(out: Path | None, device: Device) -> tuple[Path, Path]:
    """(registry, predictions)."""
    if out is not None:
        return out / f"{device.slug}.json", out / f"{device.slug}.predictions.json"
    folder = Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / "results" / device.slug
    return registry.default_path(device), folder / "predictions.json"


def _prepare(paths: Sequence[Path], device: Device) -> None:
    """Make the folders, prove that they can be written and that the registry there is of this SKU."""
    for folder in {path.parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"\0")
                probe.flush()
        except OSError as error:
            text = f"results cannot be written to {folder}: {error.strerror}; choose another folder with --out"
            raise errors.OutputFolderError(text) from None
    if paths[0].exists():
        facts = registry.load(paths[0]).device.validity
        if facts != device.validity() and not validity.same_sku(facts, device.validity()):
            text = (
                f"registry {paths[0]} is of another device ({validity.named(facts)}); choose another folder with --out"
            )
            raise errors.RegistryError(text)


def _entry(space: TargetSpace, chosen: TargetCandidate, sku: str) -> Entry:
    assert chosen.prediction is not None
    variant, found = chosen.planned.variant, chosen.prediction
    return Entry(
        op=space.op.name,
        case=space.case,
        variant=variant.name,
        config=config_dict(chosen.planned.config),
        status="predicted",
        source_hash=variant.source_hash,
        date=_now(),
        reason=reason(space, chosen, sku),
        candidates=len(space.candidates),
        bound=found.bound,
        predicted_s=found.seconds,
    )


def reason(space: TargetSpace, chosen: TargetCandidate, sku: str) -> str:
    """Why a candidate was chosen, in words."""
    assert chosen.prediction is not None
    ranked, found = space.ranked(), chosen.prediction
    best = ranked[0]
    parts = [f"predicted for {sku}, not measured: {seconds_text(found.seconds)}, bound by {found.bound}"]
    main = found.main
    spills = f"{found.spill_bytes} bytes spilled" if found.spill_bytes else "no spills"
    waiting = ", serialised products" if found.serialised else ""
    parts.append(f"{main.registers} registers, {spills}{waiting}, {main.occupancy:.0%} occupancy")
    if chosen is space.default and best is not chosen and best.prediction is not None:
        ahead = found.seconds / best.prediction.seconds - 1
        name = f"{best.planned.variant.name} [{config_key(best.planned.config)}]"
        parts.append(f"the default, kept: {name} is predicted to be only {ahead:.1%} faster")
    elif chosen is space.default:
        parts.append("the default, predicted to be the fastest")
    elif space.default is not None and space.default.prediction is not None:
        default = space.default
        assert default.prediction is not None
        gain = default.prediction.seconds / found.seconds
        name = f"{default.planned.variant.name} [{config_key(default.planned.config)}]"
        flaw = "spills" if default.prediction.spill_bytes else "serialises its products"
        more = f" (which {flaw})" if default.prediction.flawed and not found.flawed else ""
        parts.append(f"{gain:.2f}x the default {name}{more}")
    parts.append(f"{len(ranked)} of {len(space.candidates)} candidates compiled")
    return "; ".join(parts)


def _why_none(space: TargetSpace) -> str:
    """Why a case has no entry."""
    if not space.candidates:
        reasons = [f"{name}: {why}" for name, why in space.unfit.items()]
        return "; ".join(reasons) or "it has no Triton variant"
    dropped = [c for c in space.candidates if c.status == "dropped"]
    if dropped:
        return f"{len(dropped)} candidates were dropped, the first because {dropped[0].reason}"
    return "time was up before a candidate was compiled"


def _recorded(space: TargetSpace) -> Predicted:
    chosen = space.choose()
    return Predicted(
        op=space.op.name,
        case=space.case,
        candidates=[CandidateRecord.of(candidate, space) for candidate in space.candidates],
        chosen=None if chosen is None else space.candidates.index(chosen),
        unfit=space.unfit,
    )


def _provenance(sku: str, found: PredictionsFile) -> dict[str, Any]:
    import torch

    return {
        "date": found.date,
        "torch": str(torch.__version__),
        "triton": found.triton,
        "predicted_for": sku,
        "constants": msgspec.to_builtins(found.constants),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
