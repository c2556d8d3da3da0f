"""Registries that ship with the package: ``python -m tuning.predict.ship`` predicts one for each SKU.

A SKU of which nobody tuned anything then starts from the model's choice in place of the default by rank; whatever is
measured there goes before it. Kernels are compiled once for an architecture: SKUs of it run the same machine code, and
are predicted from it one by one. Besides the bench cases there are the calls of the models in ``MODELS``.

A file is made anew as a whole. After a change of a kernel its entries are passed over, and ``griffin tune doctor`` says
how many, until the command is run again: before a release.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console

from griffin_kernels import datasheet, errors, registry, registry_files
from griffin_kernels.misses import Miss
from griffin_kernels.models.presets import preset
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile
from griffin_kernels.texts import now
from roofline.console import line, plain_errors
from roofline.units import clock_text
from roofline.work import Phase, part_kernels
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import predictor, time_model
from tuning.predict.predictor import EFFORTS
from tuning.predict.target_space import EstimatedCode, Reports, TargetSpace

MODELS = ("griffin-1b3", "griffin-7b", "recurrentgemma-2b", "recurrentgemma-9b")
"""Presets whose calls are predicted for, in bfloat16."""

SHAPES: tuple[tuple[Phase, int, int], ...] = (
    *(("prefill", batch, time) for batch, time in ((1, 2048), (1, 8192), (8, 2048))),
    *(("decode", batch, 4096) for batch in (1, 16, 128)),
)
"""(phase, batch, tokens) of their calls: look-up holds for four times each size."""

MOST_BYTES = 192 * 1024
"""Of one shipped file: some 200 entries. What is over is left out, the calls of models first to stay."""


class Shipped(NamedTuple):
    """One file. left_out: entries over MOST_BYTES."""

    path: Path
    entries: int
    left_out: int


def model_calls() -> list[Miss]:
    """The calls of MODELS at SHAPES, each once."""
    found: dict[tuple[str, str], Miss] = {}
    for name, (phase, batch, seq) in itertools.product(MODELS, SHAPES):
        for kernels in part_kernels(preset(name), phase, batch, seq, "bfloat16").values():
            for case in (kernel.case for kernel in kernels if kernel.case is not None):
                found.setdefault((case.op, case.key), Miss(op=case.op, case=case.plain(), device=""))
    return list(found.values())


def architectures(skus: Sequence[str]) -> dict[str, list[str]]:
    """SKUs by architecture. Without any: all that kernels can be predicted for.

    Raises UnknownDevice and DeviceError for named ones that there are not, or that cannot be predicted for.
    """
    found: dict[str, list[str]] = {}
    for sku in skus or datasheet.skus():
        try:
            where = time_model.machine(sku)
        except errors.DeviceError:
            if skus:
                raise
            continue  # Triton does not compile for it, or the datasheet lacks figures
        found.setdefault(where.arch, []).append(sku)
    return found


def jobs_of(sku: str, budget: str, ops: tuple[str, ...] = ()) -> list[planner.Job]:
    """The calls of models, then the bench cases on a SKU, each once. ops: all without any; raises UnknownOpError."""
    device = time_model.machine(sku).device
    calls = tuple(call for call in model_calls() if not ops or call.op in ops)
    jobs = planner.make(Options(ops, budget=budget, misses=calls), device) if calls else []
    jobs += planner.make(Options(ops, budget=budget), device)
    return list({job.place: job for job in reversed(jobs)}.values())[::-1]


def ship(
    skus: Sequence[str] = (),
    out: Path = registry_files.SHIPPED,
    console: Console | None = None,
    *,
    budget: str = "quick",
    minutes: float = 0.0,
    processes: int = 0,
    ops: tuple[str, ...] = (),
) -> Iterator[Shipped]:
    """Predict the registries of SKUs, one architecture after the other, and write each into a folder.

    skus: all that kernels can be predicted for without any. budget: of ``predictor.EFFORTS``, for one architecture.
    minutes: after which no kernel of an architecture is begun; the budget's for 0.
    processes: that compile at once; one per usable core for 0. ops: all without any. Raises ArgumentError,
    UnknownDevice, UnknownOpError, DeviceError, OutputFolderError, and RegistryError for a file that holds measurements,
    which is left as it is.
    """
    if budget not in EFFORTS:
        raise errors.ArgumentError(f"no budget {budget!r}; there are {', '.join(EFFORTS)}")
    if not (math.isfinite(minutes) and minutes >= 0):
        raise errors.ArgumentError(f"minutes is {minutes:g}, expected a number from 0 up")
    effort = EFFORTS[budget]
    if minutes:
        effort = effort._replace(until=60 * minutes, more_until=60 * minutes)
    told = console or Console(quiet=True)
    groups = architectures(skus)
    for sku in itertools.chain.from_iterable(groups.values()):
        _check_free(path_of(sku, out))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.OutputFolderError(f"{out} cannot be made: {error.strerror or error}") from None
    for arch, members in groups.items():
        began = time.monotonic()
        line(told, f"{arch}: {', '.join(members)}")
        reports: Reports = {}
        for sku in members:
            where = time_model.machine(sku)
            estimates = EstimatedCode(where)
            spaces = [TargetSpace(job, where, where.constants, estimates) for job in jobs_of(sku, budget, ops)]
            if not reports:  # the effort's seconds are of compiling
                reports, _ = predictor.compile_rounds(spaces, estimates, effort, time.monotonic(), told, processes)
            for space in spaces:
                space.take_reports(reports)
            chosen = [(space, space.choose()) for space in spaces]
            entries = [predictor.entry(space, best, sku) for space, best in chosen if best is not None]
            yield write(sku, entries, out)
        line(told, f"{arch}: {len(reports)} kernels compiled in {clock_text(time.monotonic() - began)}")


def path_of(sku: str, out: Path) -> Path:
    """The file of a SKU in a folder, by the first name that its driver reports."""
    return out / f"{time_model.machine(sku).device.slug}.json"


def _check_free(path: Path) -> None:
    if path.exists() and any(entry.status == "measured" for entry in registry.load(path).entries):
        raise errors.RegistryError(f"registry {path} holds measurements; choose another folder with --out")


def write(sku: str, entries: Sequence[Entry], out: Path) -> Shipped:
    """Write a SKU's file anew, with as many of the entries, in order, as MOST_BYTES has room for."""
    where, path = time_model.machine(sku), path_of(sku, out)
    versions = {"torch": str(torch.__version__), "triton": metadata.version("triton")}
    facts = {"date": now(), **versions, "predicted_for": sku}
    record = DeviceRecord(where.device.validity(), facts)

    def size(count: int) -> int:
        file = RegistryFile(schema_version=SCHEMA_VERSION, device=record, entries=list(entries[:count]))
        return len(registry.encode(file))

    kept = len(entries)
    while kept and size(kept) > MOST_BYTES:
        kept -= max(1, kept // 50)
    registry.write(path, RegistryFile(schema_version=SCHEMA_VERSION, device=record, entries=list(entries[:kept])))
    return Shipped(path, kept, len(entries) - kept)


def main(
    sku: Annotated[list[str] | None, typer.Option(help="A SKU, again for more; all that can be by default.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the files.")] = registry_files.SHIPPED,
    budget: Annotated[str, typer.Option(help="quick, default or thorough: how much is compiled.")] = "quick",
    minutes: Annotated[float, typer.Option(help="Of compiling for an architecture; the budget's for 0.")] = 0.0,
    ops: Annotated[str, typer.Option(help="These ops alone, comma-separated; all by default.")] = "",
    jobs: Annotated[int, typer.Option(min=0, help="Processes that compile; one per core for 0.")] = 0,
) -> None:
    """Predict the registries that ship with the package."""
    console = Console(stderr=True)
    with plain_errors(console):
        chosen = tuple(op.strip() for op in ops.split(",") if op.strip())
        for made in ship(sku or (), out, console, budget=budget, minutes=minutes, processes=jobs, ops=chosen):
            over = f", {made.left_out} left out: {MOST_BYTES // 1024} KiB are full" if made.left_out else ""
            line(console, f"{made.path}: {made.entries} entries{over}")


if __name__ == "__main__":
    typer.run(main)
