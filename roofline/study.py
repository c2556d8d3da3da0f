"""Everything about a machine in one file: ceilings, tuned kernels, fusion, forward passes run and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from griffin_kernels import catalog, datasheet
from griffin_kernels.device import Device, provenance
from griffin_kernels.records import DeviceRecord, Entry
from griffin_kernels.registry import load_for, sources, write_atomically
from roofline import run, store
from roofline.at_hand import at_hand
from roofline.ceilings import Ceiling, Ceilings
from roofline.floors import fusion_table, kernel_floors
from roofline.forward import Forward, analyse
from roofline.records import STUDY_VERSION, Measured, Page, PassRecord, Study, encode, part_rows
from roofline.sweep import GridPoint, sweep
from roofline.target import Target, of_sku
from roofline.work import PHASES, Phase

Tell = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True)
class Plan:
    """Which passes a page shows. runs: (phase, batch, seq), in detail; the grid is predicted."""

    models: tuple[str, ...]
    dtype: str
    runs: tuple[tuple[Phase, int, int], ...]
    batches: tuple[int, ...]
    seqs: tuple[int, ...]


CPU_PLAN = Plan(
    models=("hawk-100m", "griffin-100m", "mqa-100m"),
    dtype="float32",
    runs=(("prefill", 1, 256), ("prefill", 1, 1024), ("decode", 1, 1024), ("decode", 16, 1024)),
    batches=(1, 2, 4, 8, 16, 32, 64),
    seqs=(128, 256, 512, 1024, 2048, 4096, 8192, 16384),
)

GPU_PLAN = Plan(
    models=("hawk-1b3", "griffin-1b3", "mqa-1b3"),
    dtype="bfloat16",
    runs=(("prefill", 1, 2048), ("prefill", 1, 8192), ("decode", 1, 4096), ("decode", 16, 4096)),
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    seqs=(128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072),
)
"""The paper's latency figures are of 1B models at batch 16 (arXiv 2402.19427, figures 1b and 4)."""

PREDICTED_SKU = "nvidia-h100-sxm"
"""The device that a study adds a predicted page for."""


def plan_for(device: Device) -> Plan:
    return CPU_PLAN if device.kind == "cpu" else GPU_PLAN


def pass_record(result: Forward, measured: Measured | None = None) -> PassRecord:
    """An analysis as it is recorded."""
    summary = result.summary()
    taken = {name: summary[name] for name in PassRecord.__struct_fields__ if name in summary}
    rows = part_rows([part.row() for part in result.parts])
    return PassRecord(**taken, predicted_by_regime_s=result.predicted, parts=rows, measured=measured)


def page(target: Target, plan: Plan, device: Device | None, seconds: float, tell: Tell) -> Page:
    """Forward passes on a target; on ``device``, where one is given, they are run as well, ``seconds`` each."""
    passes = []
    for name in plan.models:
        results = [
            analyse(name, target, phase=phase, batch=batch, seq=seq, dtype=plan.dtype)
            for phase, batch, seq in plan.runs
        ]
        timed: list[Measured | None] = [None] * len(results)
        if device is not None:
            fitting = [result for result in results if result.memory.fits is not False]
            tell(f"building {name}")
            model = run.build(fitting[0], device) if fitting else None
            for index, result in enumerate(results):
                if model is not None and result.memory.fits is not False:
                    tell(f"{name} {result.phase} B{result.batch} T{result.seq}")
                    timed[index] = run.measure(model, result, device, seconds)
        passes += [pass_record(result, measured) for result, measured in zip(results, timed, strict=True)]
    tell(f"sweeping {', '.join(plan.models)} on {target.name}")
    grid: list[GridPoint] = []
    for name in plan.models:
        for phase in PHASES:
            grid += sweep(name, target, phase=phase, dtype=plan.dtype, batches=plan.batches, seqs=plan.seqs)
    return Page(
        device=target.name,
        measured=target.measured,
        dtype=plan.dtype,
        models=list(plan.models),
        assumptions=list(target.assumptions),
        ceilings=list(target.ceilings.table),
        passes=passes,
        grid=grid,
    )


def study(
    device: Device, ceilings: Sequence[Ceiling], entries: Iterable[Entry], *, seconds: float = 3.0, tell: Tell = print
) -> Study:
    """Study a device: ``ceilings`` measured on it, ``entries`` of its registry, forward passes of ``plan_for(device)``.

    seconds: for each pass that is run. Memory for the largest of the models is needed.
    """
    here = Ceilings(device.name, tuple(ceilings), device.last_level_cache_bytes)
    sheet = datasheet.find(device.name)
    tuned = list(entries)
    kernels = kernel_floors(tuned, here)
    cases = [entry.case.case(entry.op) for entry in tuned if not catalog.op(entry.op).forward]
    return Study(
        schema_version=STUDY_VERSION,
        device=DeviceRecord(device.validity(), provenance(device)),
        ceilings=list(ceilings),
        datasheet=list(Ceilings.from_datasheet(sheet).table) if sheet else [],
        kernels=kernels,
        fusion=fusion_table(cases, here),
        pages=[
            page(at_hand(device, here), plan_for(device), device, seconds, tell),
            page(of_sku(PREDICTED_SKU), GPU_PLAN, None, 0.0, tell),
        ],
    )


def default_path(device: Device) -> Path:
    """The user's study of a device."""
    return store.default_path(device).parent.with_name("studies") / f"{device.slug}.json"


def registered(device: Device) -> list[Entry]:
    """Entries of the user's registry for a device, or of the one that ships; the first source that there is."""
    for path in sources(device):
        return load_for(path, device).entries
    return []


def write(path: Path, found: Study) -> None:
    """Write a study, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode(found))
