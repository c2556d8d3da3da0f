"""Everything about a machine in one file: ceilings, tuned kernels, fusion, forward passes run and predicted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec import structs
from torch.nn import Parameter

from griffin_kernels import catalog, datasheet
from griffin_kernels.device import Device, provenance
from griffin_kernels.records import DeviceRecord, Entry
from griffin_kernels.registry import write_atomically
from roofline import pass_timing, store
from roofline.ceilings import Ceiling, Ceilings, best_of, held
from roofline.floors import fusion_table, kernel_floors
from roofline.forward import analyse, sweep
from roofline.measure import Sampler
from roofline.pass_timing import LEAST_CALM
from roofline.study_records import STUDY_VERSION, GridPoint, Measured, Page, Study, encode
from roofline.target import AnalysisTarget, at_hand, of_sku
from roofline.work import INFERENCE, Phase

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


@dataclass(frozen=True)
class Timing:
    """How long a study measures. seconds: for all passes together. rounds: at the least. ceilings: seconds before the
    passes; between: seconds in each round."""

    seconds: float = 60.0
    rounds: int = LEAST_CALM
    ceilings: float = 6.0
    between: float = 3.0


def measured_passes(
    device: Device, plan: Plan, sampler: Sampler, timing: Timing, tell: Tell
) -> dict[tuple[str, int], Measured]:
    """Run the plan's passes; measurements by model and place in ``plan.runs``, without those that do not fit.

    Each round times every pass once and samples the ceilings, so that predictions and measurements see the same
    machine: other users of a shared host change what it reaches from one minute to the next.
    """
    before = at_hand(device, Ceilings(device.name, tuple(sampler.ceilings()), device.last_level_cache_bytes))
    benches: dict[tuple[str, int], pass_timing.PassTimer] = {}
    room = device.memory_bytes
    embedding: Parameter | None = None
    for name in plan.models:
        results = [analyse(name, before, phase=p, batch=b, seq=t, dtype=plan.dtype) for p, b, t in plan.runs]
        fitting = {i: result for i, result in enumerate(results) if result.memory.fits is not False}
        needed = max((result.memory.needed for result in fitting.values()), default=0)
        if not fitting or needed > room:
            tell(f"{name} does not fit beside the others")
            continue
        room -= max(result.memory.weights + result.memory.cache for result in fitting.values())
        tell(f"building {name}")
        model = pass_timing.build(next(iter(fitting.values())), device, embedding)
        embedding = cast(Parameter, model.embedding.weight)
        benches |= {(name, i): pass_timing.PassTimer(model, result.record, device) for i, result in fitting.items()}
    begin, done = time.perf_counter(), 0
    while done < timing.rounds or time.perf_counter() - begin < timing.seconds:
        for (name, _), bench in benches.items():
            tell(f"round {done + 1}: {name} {bench.record.phase} B{bench.record.batch} T{bench.record.seq}")
            bench.sample()
        sampler.sample(timing.between)
        done += 1
    return {key: bench.measured() for key, bench in benches.items()}


def page(target: AnalysisTarget, plan: Plan, measured: Mapping[tuple[str, int], Measured], tell: Tell) -> Page:
    """Forward passes on a target, with the measurements there are, and the grid of predictions."""
    passes = []
    for name, (i, (p, b, t)) in itertools.product(plan.models, enumerate(plan.runs)):
        record = analyse(name, target, phase=p, batch=b, seq=t, dtype=plan.dtype).record
        passes.append(structs.replace(record, measured=measured.get((name, i))))
    tell(f"sweeping {', '.join(plan.models)} on {target.name}")
    grid: list[GridPoint] = []
    for name, phase in itertools.product(plan.models, INFERENCE):
        grid += sweep(name, target, phase=phase, dtype=plan.dtype, batches=plan.batches, seqs=plan.seqs)
    return Page(
        device=target.name, measured=target.measured, dtype=plan.dtype, models=list(plan.models),
        assumptions=list(target.assumptions), ceilings=list(target.ceilings.table), passes=passes, grid=grid,
    )  # fmt: skip


def study(
    device: Device, entries: Sequence[Entry], tell: Tell, timing: Timing = Timing(), earlier: Sequence[Ceiling] = (),
    judging: Sequence[Ceiling] = (),
) -> tuple[Study, list[Ceiling]]:  # fmt: skip
    """(a study of a device, the ceilings that it was seen to reach).

    The study has its ceilings, ``entries`` of its registry, and forward passes of its plan.
    earlier: ceilings that this device was seen to reach before, with the same software. judging: ceilings that the
    entries were judged by already; they stand, so that everything is held against one set.
    The models are held in memory together. Dispatch decides which kernels run, so the registry that ``entries`` come
    from should be in use. Raises DeviceError where there is no memory for the probes.
    """
    plan = CPU_PLAN if device.kind == "cpu" else GPU_PLAN
    sampler = Sampler(device, progress=lambda what, share: tell(f"ceilings: {what}"))
    sampler.sample(timing.ceilings)
    measured = measured_passes(device, plan, sampler, timing, tell)
    best = best_of(earlier, sampler.ceilings())
    here = Ceilings(device.name, tuple(held(judging, best)), device.last_level_cache_bytes)
    sheet = datasheet.find(device.name)
    cases = [(entry.op, entry.case) for entry in entries if not catalog.op(entry.op).forward]
    found = Study(
        schema_version=STUDY_VERSION, device=DeviceRecord(device.validity(), provenance(device)),
        ceilings=list(here.table), datasheet=list(Ceilings.from_datasheet(sheet).table) if sheet else [],
        kernels=kernel_floors(entries, here), fusion=fusion_table(cases, here),
        pages=[page(at_hand(device, here), plan, measured, tell), page(of_sku(PREDICTED_SKU), GPU_PLAN, {}, tell)],
    )  # fmt: skip
    return found, best


def record(
    path: Path, device: Device, entries: Sequence[Entry], timing: Timing, tell: Tell, *, shared: bool = True,
    judging: Sequence[Ceiling] = (),
) -> Study:  # fmt: skip
    """Study a device as ``study`` does, and write the file, all or nothing.

    shared: ceilings begin with those in the user's data folder, and go there too. Raises OutputFolderError.
    """
    facts, stored = provenance(device), store.default_path(device)
    before = store.earlier(stored, device, facts) if shared else []
    found, reached = study(device, entries, earlier=before, timing=timing, tell=tell, judging=judging)
    if shared:
        store.save(stored, device, reached, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode(found))
    return found
