"""A synthetic study of a small CPU, and the journal that belongs to it: for tests of reports without a measurement.

Ceilings and times are made up but fit together; everything else is computed by the real code. Everything is seeded:
equal calls give equal bytes.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import msgspec

from griffin_kernels import catalog
from griffin_kernels.case import Case
from griffin_kernels.ops.linear_scan import cost as linear_scan
from griffin_kernels.ops.local_attention import cost as local_attention
from griffin_kernels.ops.rg_lru import cost as rg_lru
from griffin_kernels.ops.temporal_conv1d import cost as temporal_conv1d
from griffin_kernels.records import DeviceRecord, Entry
from roofline import study as studying
from roofline.ceilings import Ceiling, Ceilings, Unit
from roofline.floors import fusion_table, judged, kernel_floors, op_floors
from roofline.stats import bootstrap_interval
from roofline.study_records import STUDY_VERSION, KernelFloor, Measured, Page, PassRecord, Study, encode
from roofline.target import AnalysisTarget, Tuned, of_sku
from tests import journals
from tuning.record.journal_records import Candidate, Race, Record, Result, Run

NAME = "AMD EPYC"
CACHE_BYTES = 32 * 2**20
MEMORY_BYTES = 8 * 10**9

DEVICE = DeviceRecord(
    validity={
        "kind": "cpu",
        "name": NAME,
        "arch": "x86-64-avx512",
        "units": 2,
        "last_level_cache_bytes": CACHE_BYTES,
        "warp_size": 0,
        "memory_gib": 0,
        "mig": False,
    },
    provenance={"date": "2026-11-21T09:12:41+00:00", "python": "3.11.9", "torch": "2.13.0+cpu", "numba": "0.63.1"},
)

RATES: list[tuple[str, Unit, float, str]] = [
    ("dram_copy", "bytes_per_s", 3.91e10, "a copy of 256 MiB, read and write counted"),
    ("dram_triad", "bytes_per_s", 4.02e10, "a = b + s c over 256 MiB each, two reads and a write counted"),
    ("dram_read", "bytes_per_s", 3.64e10, "a sum over 256 MiB"),
    ("cache_triad", "bytes_per_s", 1.52e11, "a = b + s c over 8 MiB in all, which stay in the last-level cache"),
    ("matmul_float32", "flops_per_s", 1.49e11, "product of square matrices of 1536"),
    ("matmul_bfloat16", "flops_per_s", 2.31e11, "product of square matrices of 1536"),
    *(
        (f"matmul_rows_float32_{rows}", "flops_per_s", rate, f"{rows} rows times weights that come from DRAM")
        for rows, rate in ((1, 1.8e10), (4, 3.1e10), (16, 6.6e10), (64, 1.12e11), (256, 1.38e11), (1024, 1.47e11))
    ),
    ("vector_float32", "flops_per_s", 1.41e11, "multiply-adds in registers"),
    ("special_exp", "ops_per_s", 1.4e9, "exp over 1 MiB, which stays in the cache"),
    ("launch", "s", 5e-6, "an operator on one element, called from Python"),
]
"""Name, unit, value, source of every measured ceiling."""

Tuning = tuple[Case, str, float]
"""A case, the variant that was chosen, and the share of its floor that it reaches."""


def cases() -> list[Tuning]:
    """Bench shapes of several ops, forward and backward; one kernel is above its ceiling."""
    return [
        (linear_scan.make_case(1, 2048, 2560), "numba.chunked", 0.87),
        (linear_scan.make_case(1, 2048, 4096), "numba.sequential", 0.79),
        (linear_scan.make_case(1, 2048, 2560, "bfloat16"), "numba.chunked", 0.52),
        (linear_scan.make_case(1, 2048, 2560, op="linear_scan_bwd"), "numba.chunked", 0.74),
        (rg_lru.make_case(1, 2048, 2560, 10), "eager.unfused", 0.41),
        (rg_lru.make_case(1, 2048, 2560, 16, "bfloat16"), "compiled.unfused", 0.66),
        (rg_lru.make_case(1, 1, 2560, 10, data=("h0",)), "compiled.unfused", 1.21),
        (rg_lru.make_case(1, 2048, 2560, 10, op="rg_lru_bwd"), "eager.unfused", 0.28),
        (temporal_conv1d.make_case(1, 2048, 2560), "eager.shifted", 0.35),
        (temporal_conv1d.make_case(8, 512, 2560, flags=("segmented",)), "eager.grouped", 0.19),
        (local_attention.make_case(1, 2048, 10, 1, 256, 512), "eager.blocked", 0.58),
    ]


def ceilings() -> list[Ceiling]:
    """Each with samples around its value and an interval from them."""
    rng = random.Random(2402_19427)
    found = []
    for name, unit, value, source in RATES:
        samples = [float(f"{value * (1 + rng.gauss(0, 0.012)):.4g}") for _ in range(9)]
        low, high = bootstrap_interval([*samples, value])
        low, high = min(low, value), max(high, value)
        found.append(
            Ceiling(
                name=name, unit=unit, value=value, low=low, high=high, origin="measured", source=source, samples=samples
            )
        )
    return found


def here() -> Ceilings:
    return Ceilings(NAME, tuple(ceilings()), CACHE_BYTES)


def entries() -> list[Entry]:
    """The registry of the machine."""
    found = []
    known = here()
    for case, variant, share in cases():
        floor = max(op_floors(case.op, case, known).values())
        seconds = floor / share
        entry = Entry(
            op=case.op,
            case=case.plain(),
            variant=variant,
            config={},
            status="measured",
            source_hash="3f2a9c0d1e4b5867",
            date="2026-11-21T09:40:00+00:00",
            reason="41% faster than the default eager.unfused, at least 40% (noise floor 0.8%)",
            candidates=25,
            median_s=seconds,
            interval_s=(seconds * 0.985, seconds * 1.012),
        )
        found.append(judged(entry, known))
    return found


def _tuned(case: Case) -> Tuned | None:
    """What a registry with scans and convolutions, but no attention, would say."""
    shares = {"rg_lru": 0.41, "temporal_conv1d": 0.35}
    share = shares.get(case.op)
    return None if share is None else Tuned(share, f"measured at {share:.0%} of its floor")


def target() -> AnalysisTarget:
    return AnalysisTarget(
        name="cpu-amd-epyc-2x-avx512",
        ceilings=here(),
        memory_bytes=MEMORY_BYTES,
        asynchronous=False,
        measured=True,
        tuned=_tuned,
        assumptions=(
            f"ceilings were measured on this {NAME}",
            "tuned kernels reach the share of their floor that the nearest entry of the registry reached",
            "everything else runs at the ceilings, one PyTorch kernel after the other",
        ),
    )


def _run(found: PassRecord, rng: random.Random) -> PassRecord:
    """A pass as if it had been run: near what was predicted, its parts a little slower with timers between them."""
    factor = rng.uniform(0.88, 1.3)
    samples = [found.predicted_s * factor * (1 + abs(rng.gauss(0, 0.02))) for _ in range(9)]
    low, high = bootstrap_interval(samples)
    middle = sorted(samples)[len(samples) // 2]
    parts = [part.predicted_s * factor * 1.03 * rng.uniform(0.85, 1.2) for part in found.parts]
    measured = Measured(samples_s=samples, median_s=middle, interval_s=(low, high), parts_s=parts)
    return msgspec.structs.replace(found, measured=measured)


def _quiet(text: str) -> None:
    pass


@functools.cache
def pages() -> tuple[Page, Page]:
    """The CPU with every pass run, and an H100 that nobody has run anything on."""
    rng = random.Random(2404_07839)
    cpu = studying.page(target(), studying.CPU_PLAN, {}, _quiet)
    cpu = msgspec.structs.replace(cpu, passes=[_run(found, rng) for found in cpu.passes])
    gpu = studying.page(of_sku(studying.PREDICTED_SKU), studying.GPU_PLAN, {}, _quiet)
    return cpu, gpu


def study() -> Study:
    """The whole study: no datasheet is known for the CPU."""
    known = here()
    return Study(
        schema_version=STUDY_VERSION,
        device=DEVICE,
        ceilings=list(known.table),
        datasheet=[],
        kernels=kernel_floors(entries(), known),
        fusion=fusion_table([(case.op, case) for case, *_ in cases() if not catalog.op(case.op).forward], known),
        pages=list(pages()),
    )


def hostile(study: Study) -> Study:
    """Every text of ceilings, kernels and fusion ends in what a page must never obey."""
    bad = journals.HOSTILE
    kernels = [
        msgspec.structs.replace(
            k, op=k.op + bad, case=k.case + bad, variant=bad, bound=bad, floors_s={**k.floors_s, bad: k.measured_s / 2}
        )
        for k in study.kernels
    ]
    device = msgspec.structs.replace(
        study.device, validity={**study.device.validity, "name": bad, "arch": bad}, provenance={"date": bad}
    )
    return msgspec.structs.replace(
        study,
        device=device,
        kernels=kernels,
        ceilings=[
            *(msgspec.structs.replace(c, source=bad) for c in study.ceilings),
            msgspec.structs.replace(study.ceilings[0], name=bad),
        ],
        fusion=[msgspec.structs.replace(row, what=bad, case=bad) for row in study.fusion],
        pages=[],
    )


def by_loss(study: Study) -> list[KernelFloor]:
    """Kernels as the report orders them."""
    return sorted(study.kernels, key=lambda kernel: -kernel.lost_s)


def write(path: Path, found: Study | None = None) -> Path:
    """The study's file."""
    path.write_bytes(encode(found or study()))
    return path


def journal() -> list[Record]:
    """A run on the same machine over those of its cases that have a time axis and channels, with the same winners."""
    known = {_key(entry.op, entry.case): entry for entry in entries() if "D" in entry.case.dims}
    lines = journals.records([(entry.op, entry.case) for entry in known.values()])
    scale = {}
    for line in lines:
        if isinstance(line, Result):
            key = _key(line.entry.op, line.entry.case)
            scale[key] = (known[key].median_s or 0.0) / (line.entry.median_s or 1.0)
    return [_rescaled(line, known, scale) for line in lines]


Key = tuple[str, str]
"""Op and the case's key."""


def _key(op: str, case: Case) -> Key:
    return op, case.key


def _rescaled(line: Record, known: dict[Key, Entry], scale: dict[Key, float]) -> Record:
    """A journal line of the GPU's as it would be on this machine: its name, and its times."""
    if isinstance(line, Run):
        return msgspec.structs.replace(line, device=DEVICE)
    if isinstance(line, Candidate):
        factor = scale[_key(line.op, line.case)]
        return msgspec.structs.replace(line, samples_s=[s * factor for s in line.samples_s])
    if isinstance(line, Race):
        factor = scale[_key(line.op, line.case)]
        rounds = [[None if s is None else s * factor for s in row] for row in line.rounds_s]
        return msgspec.structs.replace(line, rounds_s=rounds, again_s=[s * factor for s in line.again_s])
    if isinstance(line, Result):
        key = _key(line.entry.op, line.entry.case)
        mine = known[key]
        entry = msgspec.structs.replace(
            line.entry,
            variant=mine.variant,
            config=mine.config,
            median_s=mine.median_s,
            interval_s=mine.interval_s,
            baseline_median_s=(line.entry.baseline_median_s or 0.0) * scale[key],
            bound=mine.bound,
            share_of_bound=mine.share_of_bound,
            above_bound=mine.above_bound,
        )
        return msgspec.structs.replace(line, entry=entry)
    return line
