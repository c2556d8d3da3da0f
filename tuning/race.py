"""The final of one case: the best few candidates, the default and the best baseline in interleaved rounds.

Each round times every finalist once, in a new random order, and the first finalist twice: the ratio of those two is the
noise floor. Candidates are compared by the ratios within rounds, so drift that hits a whole round cancels.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from griffin_kernels.contract import Case, Op, config_dict, config_key
from griffin_kernels.records import CaseRecord, Entry
from roofline import stats
from tuning.budget import INDIFFERENCE, Budget
from tuning.plan import Planned
from tuning.records import Candidate, Race, Result
from tuning.timing import Sampler


@dataclass(frozen=True)
class Finalist:
    """A candidate in the race with its record and its sampler."""

    planned: Planned
    record: Candidate


def finalists(done: Sequence[tuple[Planned, Candidate]], default: Planned | None, most: int) -> list[Finalist]:
    """The default first, then the ``most`` fastest candidates, then the fastest baseline."""
    usable = sorted(
        (Finalist(p, r) for p, r in done if r.status == "ok"),
        key=lambda finalist: stats.median(finalist.record.samples_s),
    )
    own = [f for f in usable if not f.planned.variant.baseline]
    baselines = [f for f in usable if f.planned.variant.baseline]
    first = [f for f in own if f.planned is default]
    chosen = [*first, *(f for f in own[:most] if f.planned is not default), *baselines[:1]]
    return chosen


def run(op: Op, case: Case, field: Sequence[Finalist], samplers: Sequence[Sampler], budget: Budget) -> Race:
    """Time the finalists in rounds. The order within a round is random, from a seed of the case."""
    order = random.Random(f"{op.name}/{case.key}")
    per_round = sum(stats.median(f.record.samples_s) for f in field) + stats.median(field[0].record.samples_s)
    rounds = max(min(5, budget.rounds), min(budget.rounds, int(budget.race_seconds / per_round)))
    rounds_s: list[list[float]] = []
    again_s: list[float] = []
    for _ in range(rounds):
        times: dict[int, float] = {}
        for index in order.sample([*range(len(field)), -1], len(field) + 1):
            times[index] = samplers[max(index, 0)]()
        rounds_s.append([times[i] for i in range(len(field))])
        again_s.append(times[-1])
    low, high = stats.paired_ratio_interval([r[0] for r in rounds_s], again_s)
    noise = max(abs(1 - low), abs(high - 1))
    keys = [f.record.key for f in field]
    return Race(op=op.name, case=CaseRecord.of(case), keys=keys, rounds_s=rounds_s, again_s=again_s, noise_floor=noise)


def decide(op: Op, case: Case, field: Sequence[Finalist], race: Race, dram_bytes_per_s: float, tried: int) -> Result:
    """The winner of a race as a registry entry.

    The default keeps its place unless another's gain over it, at the lower end of its interval, exceeds both the
    indifference zone and the noise floor.
    """
    columns = list(zip(*race.rounds_s, strict=True))
    own = [i for i, f in enumerate(field) if not f.planned.variant.baseline]
    fastest = min(own, key=lambda i: stats.median(columns[i]))
    default = 0 if field[0].record.is_default else None
    winner, reason = _choose(columns, fastest, default, race.noise_floor, field)
    median = stats.median(columns[winner])
    baseline = next((i for i, f in enumerate(field) if f.planned.variant.baseline), None)
    speedup = interval = None
    if baseline is not None:
        speedup = stats.median([b / w for b, w in zip(columns[baseline], columns[winner], strict=True)])
        interval = stats.paired_ratio_interval(columns[baseline], columns[winner])
    ideal = op.cost(case).bytes_total / dram_bytes_per_s
    best = field[winner]
    errors = best.record.errors
    entry = Entry(
        op=op.name,
        case=CaseRecord.of(case),
        variant=best.planned.variant.name,
        config=config_dict(best.planned.config),
        status="measured",
        source_hash=best.planned.variant.source_hash,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
        candidates=tried,
        median_s=median,
        interval_s=stats.bootstrap_interval(columns[winner]),
        baseline=None if baseline is None else field[baseline].planned.variant.name,
        baseline_median_s=None if baseline is None else stats.median(columns[baseline]),
        speedup=speedup,
        speedup_interval=interval,
        bound="dram",
        share_of_bound=ideal / median,
        error_rel_norm=max((e.rel_norm for e in errors if e.rel_norm is not None), default=0.0),
        error_worst=max((e.worst for e in errors if e.worst is not None), default=0.0),
        samples_digest=digest(columns[winner]),
    )
    return Result(
        entry=entry,
        winner_key=best.record.key,
        baseline_key=None if baseline is None else field[baseline].record.key,
    )


def _choose(
    columns: Sequence[Sequence[float]], fastest: int, default: int | None, noise: float, field: Sequence[Finalist]
) -> tuple[int, str]:
    """(index of the winner, why)."""
    if default is None:
        return fastest, "fastest; the default cannot run this case"
    if fastest == default:
        return default, "the default is the fastest"
    low, _ = stats.paired_ratio_interval(columns[default], columns[fastest])
    gain = stats.median([d / f for d, f in zip(columns[default], columns[fastest], strict=True)]) - 1
    needed = max(INDIFFERENCE, noise)
    loser = field[default].planned
    name = f"the default {loser.variant.name} [{config_key(loser.config)}]"
    if low - 1 > needed:
        return fastest, f"{gain:.0%} faster than {name}, at least {low - 1:.0%} (noise floor {noise:.1%})"
    return default, f"tie: {name} kept, the fastest was {gain:.1%} ahead, {needed:.1%} needed"


def digest(samples: Sequence[float]) -> str:
    """SHA-256 (16 hex digits) of samples, so that a registry entry can be traced to its journal."""
    return hashlib.sha256(json.dumps(list(samples)).encode()).hexdigest()[:16]
