"""Synthetic journals: realistic records for tests that read a journal without a tuner or a GPU.

``records()`` gives two ops, three cases and about 25 candidates a case, with every status, baselines, races, ceilings
and results. ``write()`` makes a journal file of them. Everything is seeded: equal arguments give equal bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.records import DeviceRecord, Entry, RegistryFile, Tie
from roofline import stats
from tuning.record.journal_records import (
    JOURNAL_VERSION,
    Candidate,
    CeilingRecord,
    Conditions,
    End,
    Noise,
    OutputError,
    Race,
    Record,
    Result,
    Run,
    Status,
)

DEVICE = DeviceRecord(
    validity={
        "kind": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "arch": "sm_90",
        "units": 132,
        "last_level_cache_bytes": 52428800,
        "warp_size": 32,
        "memory_gib": 79,
        "mig": False,
    },
    provenance={
        "date": "2026-11-20T08:00:03+00:00",
        "python": "3.11.9",
        "torch": "2.13.0+cu130",
        "triton": "3.7.1",
        "numba": "0.63.1",
        "system": "Linux 6.8.0-48-generic",
        "cuda": "13.0",
        "driver": "580.95.05",
        "power_limit_watts": 700.0,
        "max_sm_clock_mhz": 1980,
        "index": 0,
    },
)

BANDWIDTH = 2.93e12

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><a href=http://x.invalid>\"'&{{ 7*7 }}"
"""Text that a page must show and never obey."""

CASES: list[tuple[str, Case]] = [
    ("linear_scan", Case({"B": 8, "T": 2048, "D": 2560, "N": 8}, "bfloat16")),
    ("linear_scan", Case({"B": 1, "T": 8192, "D": 4096, "N": 1}, "float32", ("reset",))),
    ("rg_lru", Case({"B": 8, "T": 2048, "D": 2560, "H": 10}, "bfloat16", (), ("h0",))),
]

SPACE: list[tuple[str, bool, float, list[dict[str, Any]]]] = [
    (
        "triton.chunked",
        False,
        1.42,
        [{"block_t": t, "block_d": d, "num_warps": w} for t in (32, 64, 128) for d in (64, 128) for w in (2, 4)],
    ),
    ("triton.sequential", False, 2.1, [{"block_d": d, "num_stages": s} for d in (64, 128, 256) for s in (2, 4)]),
    ("triton.blocked_diagonal", False, 2.9, [{"block_t": t, "num_warps": 8} for t in (16, 32, 64)]),
    ("triton.associative", False, 3.6, [{"block_t": t} for t in (64, 256)]),
    ("compiled.associative_scan", True, 4.4, [{}]),
    ("eager.associative_scan", True, 19.0, [{}]),
    ("eager.sequential", True, 260.0, [{}]),
]
"""Variant, baseline, time over the memory floor, configurations (the default first)."""

PROBLEMS: dict[tuple[str, int], tuple[Status, str]] = {
    ("triton.chunked", 3): (
        "wrong",
        "h is wrong: relative norm 3.12e-02 (allowed 2.10e-03), worst element 4.71e-01 (allowed 9.80e-03)",
    ),
    ("triton.chunked", 11): (
        "failed",
        "OutOfResources: out of resource: shared memory, Required: 278528, Hardware limit: 232448",
    ),
    ("triton.sequential", 5): ("timeout", "the worker did not answer within 30 s and was stopped"),
    ("triton.chunked", 9): ("crashed", "the worker died of signal 11 (segmentation fault)"),
    ("triton.chunked", 10): ("memory", "the worker held 12.1 GiB, 8.0 GiB are allowed, and was stopped"),
    ("triton.blocked_diagonal", 2): (
        "rejected",
        "block_t=64 needs 4 x 64 x 64 float32 of shared memory per program, more than this device has",
    ),
    ("triton.sequential", 3): ("skipped", "its first configuration is 9.1 times slower than the best"),
    ("triton.associative", 1): ("wrong", "h holds NaN: an element was not written"),
}


STAGES = {"wrong": "check", "failed": "compile", "crashed": "time", "timeout": "time", "memory": "check"}

NOISE = Noise(
    what="torch.add of float32 tensors of 128 MiB", seconds=1.4e-4, rounds=41, low=0.996, high=1.006, floor=0.006,
    conditions=Conditions(clock_mhz=1980.0, temperature_c=38.0, power_w=310.0, load=0.4),
)  # fmt: skip

SURPRISE = "triton.chunked was 14% faster in the race than when it was first timed"

TRITON_OVER = (1.0, 0.92, 2.95, 1.2, 3.4, 0.85)
"""How much slower than in SPACE the Triton variants are, case by case: some cases are won clearly, some are ties."""


def floor_seconds(op: str, case: Case) -> float:
    """Time at the memory roof: three tensors of B x T x D."""
    elements = case.dims["B"] * case.dims["T"] * case.dims["D"]
    return 3 * elements * (4 if case.dtype == "float32" else 2) / BANDWIDTH


def candidate_key(op: str, variant: str, case: Case, config: dict[str, Any]) -> str:
    values = ",".join(f"{k}={v}" for k, v in config.items()) or "default"
    return f"{op}/{variant}/{case.key}/{values}/nvidia-h100-80gb-hbm3"


def _samples(rng: random.Random, centre: float, count: int) -> list[float]:
    return [centre * math.exp(abs(rng.gauss(0, 0.006)) + (0.15 if rng.random() < 0.03 else 0)) for _ in range(count)]


def _errors(rng: random.Random, case: Case, problem: str | None) -> list[OutputError]:
    if problem is not None and "NaN" in problem:
        return [OutputError("h", math.inf, math.inf)]
    scale = 1e-7 if case.dtype == "float32" else 1.6e-3
    if problem is not None:
        return [OutputError("h", 3.12e-2, 4.71e-1)]
    return [
        OutputError("h", scale * rng.uniform(0.9, 1.4), 3 * scale * rng.uniform(0.9, 1.5)),
        OutputError("h_last", 1e-7 * rng.uniform(0.9, 1.4), 4e-7 * rng.uniform(0.9, 1.5)),
    ]


def candidates(op: str, case: Case, rng: random.Random) -> Iterator[Candidate]:
    """All candidates of one case, in order of work."""
    floor = floor_seconds(op, case)
    handicap, best = rng.choice(TRITON_OVER), rng.randrange(6)
    if (op, case) in CASES:
        handicap = TRITON_OVER[CASES.index((op, case))]
    for variant, baseline, over, configs in SPACE:
        for index, config in enumerate(configs):
            status, problem = PROBLEMS.get((variant, index), ("ok", None))
            scale = over * (handicap if variant.startswith("triton") else 1.0)
            centre = floor * scale * (1 + 0.05 * rng.random() + 0.09 * abs(index - best))
            slow = status == "ok" and over > 15
            timed = status == "ok"
            yield Candidate(
                key=candidate_key(op, variant, case, config),
                op=op,
                variant=variant,
                case=case,
                config=config,
                baseline=baseline,
                is_default=variant == "triton.chunked" and index == 0,
                status="slow" if slow else status,
                problem=f"{over / 1.42:.0f} times slower than the best; stopped after 3 samples" if slow else problem,
                errors=[] if status not in ("ok", "wrong") else _errors(rng, case, problem),
                samples_s=_samples(rng, centre, 3 if slow else 30) if timed else [],
                source_hash="3f2a9c0d1e4b5867",
                stage="" if status in ("ok", "rejected", "skipped") else STAGES[status],
                seconds_spent=round(rng.uniform(0.4, 3.0), 3),
            )


def _reason(gain: float, default: Candidate) -> str:
    name = f"the default {default.variant} [{','.join(f'{k}={v}' for k, v in default.config.items())}]"
    if gain > 0.03:
        return f"{gain:.0%} faster than {name}, at least {gain - 0.01:.0%} (noise floor 0.8%)"
    return f"tie: {name} kept, the fastest was {max(gain, 0.0):.1%} ahead, 3.0% needed"


def decide(op: str, case: Case, found: list[Candidate], rng: random.Random) -> tuple[Race, Result]:
    """A race of the four fastest and the best baseline, and what follows from it."""
    timed = sorted((c for c in found if c.status == "ok"), key=lambda c: stats.median(c.samples_s))
    baseline = next(c for c in timed if c.baseline)
    finalists = list(dict.fromkeys(c.key for c in [*timed[:4], baseline]))
    centres = {c.key: stats.median(c.samples_s) for c in timed}
    rounds = []
    for _ in range(12):
        drift = 1 + 0.03 * rng.random()
        rounds.append([centres[key] * drift * (1 + 0.02 * rng.random()) for key in finalists])
    columns = {key: [row[j] for row in rounds] for j, key in enumerate(finalists)}
    winner = min(timed, key=lambda c: stats.median(columns.get(c.key, [math.inf])) if c.key in columns else math.inf)
    time = stats.median(columns[winner.key])
    ratios = [b / w for b, w in zip(columns[baseline.key], columns[winner.key], strict=True)]
    default = next(c for c in found if c.is_default)
    gain = centres.get(default.key, time) / time - 1
    entry = Entry(
        op=op,
        case=case,
        variant=winner.variant,
        config=winner.config,
        status="measured",
        source_hash=winner.source_hash,
        date="2026-11-20T08:14:00+00:00",
        reason=_reason(gain, default),
        candidates=len(found),
        median_s=time,
        interval_s=stats.bootstrap_interval(columns[winner.key]),
        baseline=baseline.variant,
        baseline_median_s=stats.median(columns[baseline.key]),
        speedup=stats.median(ratios),
        speedup_interval=stats.paired_ratio_interval(columns[baseline.key], columns[winner.key]),
        bound="dram",
        share_of_bound=floor_seconds(op, case) / time,
        error_rel_norm=max(e.rel_norm or 0.0 for e in winner.errors),
        error_worst=max(e.worst or 0.0 for e in winner.errors),
        samples_digest="9b1c7e52aa04d3f6",
        warm_median_s=0.82 * time,
        noise_floor=0.008,
        ties=[
            Tie(c.variant, c.config)
            for c in timed
            if c.key in columns and not c.baseline and c is not winner
            if stats.paired_ratio_interval(columns[c.key], columns[winner.key])[0] < 1.10
        ],
    )
    again = [row[0] * (1 + 0.01 * rng.random()) for row in rounds]
    hot = CASES.index((op, case)) == 1 if (op, case) in CASES else False
    race = Race(
        op=op,
        case=case,
        keys=finalists,
        rounds_s=rounds,
        again_s=again,
        noise_floor=0.008,
        before=Conditions(clock_mhz=1980.0, temperature_c=41.0, power_w=320.0, load=0.9, steal=0.0),
        after=Conditions(
            clock_mhz=1410.0 if hot else 1965.0,
            temperature_c=84.0 if hot else 52.0,
            power_w=655.0,
            throttle=["SW thermal slowdown"] if hot else [],
            load=1.0,
            steal=0.0,
        ),
        confirms=SURPRISE if hot else "",
    )
    return race, Result(entry=entry, winner_key=winner.key, baseline_key=baseline.key)


def records(
    cases: list[tuple[str, Case]] | None = None, *, finished: bool = True, results: bool = True
) -> list[Record]:
    """The records of one run over ``cases``; unfinished runs lack the end, and the results too if asked."""
    cases = CASES if cases is None else cases
    rng = random.Random(2402_19427)
    planned = len(cases) * sum(len(configs) for *_, configs in SPACE)
    out: list[Record] = [
        Run(
            journal_version=JOURNAL_VERSION,
            run_id="20261120-080003-7f3a",
            date="2026-11-20T08:00:03+00:00",
            device=DEVICE,
            command="griffin tune --budget normal",
            options={"budget": "normal", "seed": 0, "ops": ["linear_scan", "rg_lru"]},
            planned=planned,
        ),
        CeilingRecord(name="dram_copy", value=BANDWIDTH, low=2.91e12, high=2.95e12, unit="bytes_per_s"),
        CeilingRecord(name="special", value=3.71e12, low=3.66e12, high=3.74e12, unit="ops_per_s"),
        CeilingRecord(name="matmul_bfloat16", value=7.62e14, low=7.5e14, high=7.7e14, unit="flops_per_s"),
        CeilingRecord(name="launch", value=2.4e-6, low=2.3e-6, high=2.6e-6, unit="s"),
        NOISE,
    ]
    for op, case in cases:
        found = list(candidates(op, case, rng))
        if not finished and (op, case) == cases[-1]:
            out += found[:17]
            break
        out += found
        if results:
            out += decide(op, case, found, rng)
    if finished:
        out.append(End(date="2026-11-20T08:21:40+00:00", registry="tuned/nvidia-h100-80gb-hbm3.json", seconds=1297.0))
    return out


def hostile(text: str = HOSTILE) -> list[Record]:
    """The records of a run in which every text that a journal can hold is ``text``, or ends in it."""
    bad: list[Record] = []
    for line in records():
        if isinstance(line, Run):
            device = DeviceRecord({**line.device.validity, "name": text}, {text: text})
            line = msgspec.structs.replace(
                line, run_id=text, date=text, device=device, command=text, options={text: [text]}
            )
        elif isinstance(line, CeilingRecord):
            line = msgspec.structs.replace(line, name=line.name + text, unit=text)
        elif isinstance(line, Candidate):
            figures = [msgspec.structs.replace(figure, output=figure.output + text) for figure in line.errors]
            line = msgspec.structs.replace(
                line,
                key=line.key + text,
                op=line.op + text,
                variant=line.variant + text,
                case=msgspec.structs.replace(line.case, flags=[text]),
                config={**line.config, text: text},
                errors=figures,
                problem=text,
                stage=text,
            )
        elif isinstance(line, Noise):
            line = msgspec.structs.replace(line, what=text)
        elif isinstance(line, Race):
            case = msgspec.structs.replace(line.case, flags=[text])
            line = msgspec.structs.replace(
                line,
                op=line.op + text,
                case=case,
                keys=[key + text for key in line.keys],
                confirms=text,
                after=msgspec.structs.replace(line.after, throttle=[text]),
            )
        elif isinstance(line, Result):
            case = msgspec.structs.replace(line.entry.case, flags=[text])
            entry = msgspec.structs.replace(
                line.entry,
                op=line.entry.op + text,
                case=case,
                reason=text,
                variant=text,
                baseline=text,
                bound=text,
                ties=[Tie(text, {text: text})],
            )
            line = msgspec.structs.replace(line, entry=entry, winner_key=line.winner_key + text)
        else:
            line = msgspec.structs.replace(line, date=text, registry=text)
        bad.append(line)
    return bad


def write(path: Path, lines: Iterable[Record], *, torn: bool = False) -> Path:
    """A journal file; ``torn`` adds half a record without a newline, as an interrupted write leaves it."""
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    if torn:
        data += b'{"kind":"candidate","key":"linear_scan/triton.chunked/B8-T2048-D2560-N8-bflo'
    path.write_bytes(data)
    return path


def registry(lines: Iterable[Record], extra: Iterable[Entry] = ()) -> RegistryFile:
    """The registry that a run's results make, and further entries."""
    entries = [line.entry for line in lines if isinstance(line, Result)]
    return RegistryFile(schema_version=1, device=DEVICE, entries=[*entries, *extra])
