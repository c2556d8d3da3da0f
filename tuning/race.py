"""The final of one case: the best few candidates, the default and the best baseline in interleaved rounds.

Each round times every finalist once, in a new random order, and the first finalist twice: the ratio of those two is the
noise floor. A baseline that is far behind sits out most rounds: its distance needs few samples, and would cost most of
the race's time. The race ends as soon as it is clear (``tuning.judge``) or its time is over.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from griffin_kernels.contract import Case, Op, config_dict, config_key
from griffin_kernels.records import CaseRecord, Entry, Tie
from roofline import stats
from tuning import judge
from tuning.budget import Budget
from tuning.judge import Duels, Looks
from tuning.plan import Planned
from tuning.records import Candidate, Race, Result
from tuning.timing import Sampler

SURPRISE = 0.10
"""Share by which a race must differ from what was known to be run again."""

FAR_BEHIND = 2.0
"""A baseline this much slower than every finalist of ours is far behind."""

ALWAYS, EVERY = 3, 4
"""It runs in the first rounds, and then in every fourth."""

WARM_SAMPLES = 9
LEAST_WARM = 3
WARM_SHARE = 0.15
"""Warm samples of each finalist, and the share of the race's time that they may take."""


@dataclass(frozen=True)
class Finalist:
    """A candidate in the race with its record. incumbent: the case's winner so far. place: among all that ran."""

    planned: Planned
    record: Candidate
    incumbent: bool = False
    place: int = 0

    @property
    def name(self) -> str:
        return f"{self.planned.variant.name} [{config_key(self.planned.config)}]".removesuffix(" [default]")


def finalists(
    done: Sequence[tuple[Planned, Candidate]], default: Planned | None, most: int, incumbent: Planned | None = None
) -> list[Finalist]:
    """The default first, the incumbent, then the fastest candidates, ``most`` without the default, then a baseline."""
    usable = sorted(
        (Finalist(p, r, p is incumbent, place) for place, (p, r) in enumerate(done) if r.status == "ok"),
        key=lambda finalist: stats.median(finalist.record.samples_s),
    )
    own = [f for f in usable if not f.planned.variant.baseline]
    baselines = [f for f in usable if f.planned.variant.baseline]
    first = [f for f in own if f.planned is default]
    holders = [*first, *(f for f in own if f.incumbent and f not in first)]
    return [*holders, *(f for f in own[:most] if f not in holders), *baselines[:1]]


def run(
    op: Op,
    case: Case,
    field: Sequence[Finalist],
    samplers: Sequence[Sampler],
    budget: Budget,
    *,
    warm: Sequence[Callable[[], Sampler] | None] = (),
    announce: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time the finalists in rounds until it is clear who wins, or ``budget.race_seconds`` are over.

    samplers: one for each finalist. warm: makes a finalist's warm sampler; None where that is not asked for, as of
    baselines. announce: told whose turn it is before each sample. clock: seconds.
    The order within a round is random, from a seed of the case. A race that is unclear but promising goes on
    for ``judge.PATIENCE`` times its rounds; its time times that ends any race of ``judge.LEAST`` rounds.
    """
    order = random.Random(f"{op.name}/{case.key}")
    first_s = [stats.median(f.record.samples_s) for f in field]
    far = _far_behind(field, first_s)
    per_round = first_s[0] + sum(s / EVERY if i in far else s for i, s in enumerate(first_s))
    looks = Looks.plan(budget.rounds, int(budget.race_seconds / per_round))
    tell = announce or (lambda index: None)
    began, most_s = clock(), judge.PATIENCE * budget.race_seconds
    rounds_s: list[list[float | None]] = []
    again_s: list[float] = []

    def heat(warm_s: list[list[float]]) -> Race:
        return Race(
            op=op.name,
            case=CaseRecord.of(case),
            keys=[f.record.key for f in field],
            rounds_s=rounds_s,
            again_s=again_s,
            noise_floor=stats.noise_floor([r[0] for r in rounds_s if r[0] is not None], again_s)[2],
            warm_s=warm_s,
            tail=looks.tail(len(rounds_s)),
        )

    while True:
        times: dict[int, float] = {}
        out = far if len(rounds_s) >= ALWAYS and len(rounds_s) % EVERY else ()
        for index in order.sample([*range(len(field)), -1], len(field) + 1):
            if index in out:
                continue
            tell(max(index, 0))
            times[index] = samplers[max(index, 0)]()
        rounds_s.append([times.get(i) for i in range(len(field))])
        again_s.append(times[-1])
        count = len(rounds_s)
        if count == looks.after[-1] or (count >= judge.LEAST and clock() - began > most_s):
            break
        if count in looks.after:
            duels = duels_of(field, heat([]))
            if duels.clear() or (count == looks.fair and not judge.promising(duels, holder_of(field))):
                break
    return heat(_warm(warm, tell, WARM_SHARE * budget.race_seconds, clock))


def _far_behind(field: Sequence[Finalist], first_s: Sequence[float]) -> frozenset[int]:
    """Places of baselines that every finalist of ours left far behind when it was first timed."""
    slowest = max(s for f, s in zip(field, first_s, strict=True) if not f.planned.variant.baseline)
    return frozenset(i for i, f in enumerate(field) if f.planned.variant.baseline and first_s[i] > FAR_BEHIND * slowest)


def _warm(
    warm: Sequence[Callable[[], Sampler] | None],
    tell: Callable[[int], None],
    seconds: float,
    clock: Callable[[], float],
) -> list[list[float]]:
    """Warm samples of each finalist that has a sampler, one finalist after the other: only so are its inputs cached."""
    found: list[list[float]] = [[] for _ in warm]
    asked = [(index, make) for index, make in enumerate(warm) if make is not None]
    for index, make in asked:
        tell(index)
        began, sampler = clock(), make()
        while len(found[index]) < LEAST_WARM or (
            len(found[index]) < WARM_SAMPLES and clock() - began < seconds / len(asked)
        ):
            tell(index)
            found[index].append(sampler())
    return found


def duels_of(field: Sequence[Finalist], race: Race) -> Duels:
    """The comparisons that a race allows."""
    columns = tuple(tuple(race.times(i)) for i in range(len(field)))
    own = tuple(i for i, f in enumerate(field) if not f.planned.variant.baseline)
    return Duels(columns, own, race.noise_floor, race.tail)


def holder_of(field: Sequence[Finalist]) -> int | None:
    """Who keeps its place unless beaten: the default, where it cannot run the incumbent, else nobody."""
    if field[0].record.is_default:
        return 0
    return _incumbent(field)


def _incumbent(field: Sequence[Finalist]) -> int | None:
    return next((i for i, f in enumerate(field) if f.incumbent), None)


def decide(op: Op, case: Case, field: Sequence[Finalist], race: Race, dram_bytes_per_s: float, tried: int) -> Result:
    """The winner of a race as a registry entry.

    The default (else the incumbent) keeps its place unless another's gain over it, at the lower end of its interval,
    exceeds both the indifference zone and the noise floor. Of the others within the indifference zone of the fastest
    the one that was tried first wins. dram_bytes_per_s: the measured ceiling. tried: candidates that ran.
    """
    duels = duels_of(field, race)
    winner = _winner(field, duels)
    reason, ties = _reason(field, duels, winner), duels.ties(winner)
    return _result(op, case, field, race, duels, (winner, reason, ties), dram_bytes_per_s, tried)


def _winner(field: Sequence[Finalist], duels: Duels) -> int:
    preference = sorted(duels.own, key=lambda i: field[i].place)
    return duels.winner(holder_of(field), preference, _incumbent(field))


def _reason(field: Sequence[Finalist], duels: Duels, winner: int) -> str:
    """Why this one, in words."""
    holder, best = holder_of(field), duels.fastest
    level = "" if winner == best else f"; tied with {field[best].name}"
    if holder is None:
        return f"fastest; the default cannot run this case{level}"
    kept = f"the {'default' if field[holder].record.is_default else 'incumbent'} {field[holder].name}"
    if winner == holder == best:
        return f"{kept} is the fastest"
    low, likely, _ = duels.compare(holder, best if winner == holder else winner)
    needed = f"{duels.margin:.1%} needed (noise floor {duels.noise:.1%})"
    if winner == holder:
        proven = f"at least {low:.1%}" if low > -1 else "in too few rounds for a proof"
        return f"tie: {kept} kept, the fastest was {likely:.1%} ahead, {proven}, {needed}"
    return f"{likely:.0%} faster than {kept}, at least {low:.1%}, {needed}{level}"


def _result(
    op: Op,
    case: Case,
    field: Sequence[Finalist],
    race: Race,
    duels: Duels,
    verdict: tuple[int, str, Sequence[int]],
    dram_bytes_per_s: float,
    tried: int,
) -> Result:
    """The registry entry of a verdict: (winner, reason, ties)."""
    winner, reason, ties = verdict
    times = duels.columns[winner]
    median = stats.median(times)
    baseline = next((i for i, f in enumerate(field) if f.planned.variant.baseline), None)
    slow, fast = ([], []) if baseline is None else race.pairs(baseline, winner)
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
        interval_s=stats.bootstrap_interval(times),
        baseline=None if baseline is None else field[baseline].planned.variant.name,
        baseline_median_s=stats.median(slow) if slow else None,
        speedup=stats.median([s / f for s, f in zip(slow, fast, strict=True)]) if slow else None,
        speedup_interval=stats.paired_ratio_interval(slow, fast) if slow else None,
        bound="dram",
        share_of_bound=op.cost(case).bytes_total / dram_bytes_per_s / median,
        error_rel_norm=max((e.rel_norm for e in errors if e.rel_norm is not None), default=0.0),
        error_worst=max((e.worst for e in errors if e.worst is not None), default=0.0),
        samples_digest=digest(times),
        warm_median_s=stats.median(race.warm_s[winner]) if race.warm_s else None,
        noise_floor=race.noise_floor,
        ties=[Tie(field[i].planned.variant.name, config_dict(field[i].planned.config)) for i in ties],
    )
    return Result(
        entry=entry,
        winner_key=best.record.key,
        baseline_key=None if baseline is None else field[baseline].record.key,
    )


def surprise(field: Sequence[Finalist], race: Race, entry: Entry, known: Entry | None = None) -> str | None:
    """What in a race differs by more than 10% from what was known, as a sentence; None where nothing does.

    Against the winner's first timing: in its standing among the finalists, since a machine that slows down slows all,
    and beyond the interval of those few samples. Against ``known``, an earlier entry of the same variant and
    configuration: in its speedup where both had the same baseline, else in its time.
    """
    medians = [stats.median(race.times(i)) for i in range(len(field))]
    winner = next(i for i, f in enumerate(field) if _is(f, entry))
    drift = stats.median([m / stats.median(f.record.samples_s) for m, f in zip(medians, field, strict=True)])
    now = medians[winner] / drift
    low, high = stats.bootstrap_interval(field[winner].record.samples_s)
    allowed = 1 + max(SURPRISE, race.noise_floor)
    name = field[winner].name
    if not low / allowed <= now <= high * allowed:
        word, first = ("faster", low / now) if now < low else ("slower", now / high)
        return f"{name} was {first - 1:.0%} {word} in the race than when it was first timed"
    if known is None or not _is(field[winner], known):
        return None
    for before, after, what in _figures(known, entry):
        if not 1 / allowed <= after / before <= allowed:
            return f"{name} has {what} {after:.3g}, the registry had {before:.3g}"
        return None
    return None


def _is(finalist: Finalist, entry: Entry) -> bool:
    planned = finalist.planned
    return (planned.variant.name, config_dict(planned.config)) == (entry.variant, entry.config)


def _figures(known: Entry, entry: Entry) -> Iterator[tuple[float, float, str]]:
    """(before, now, of what): the best figure to compare two entries of the same kernel by comes first."""
    if known.speedup and entry.speedup and known.baseline == entry.baseline:
        yield known.speedup, entry.speedup, f"a speedup over {entry.baseline} of"
    if known.median_s and entry.median_s:
        yield known.median_s, entry.median_s, "a median in seconds of"


def settle(
    op: Op, case: Case, field: Sequence[Finalist], first: Race, second: Race, dram_bytes_per_s: float, tried: int
) -> Result:
    """The decision of two races of the same finalists.

    Where both have the same winner, it wins on the samples of both. Where they differ it is a tie: the default (else
    the incumbent, else whichever of the two winners was tried first) keeps its place. The digest is over both.
    """
    winners = [_winner(field, duels_of(field, race)) for race in (first, second)]
    joint = msgspec.structs.replace(
        second,
        rounds_s=[*first.rounds_s, *second.rounds_s],
        again_s=[*first.again_s, *second.again_s],
        warm_s=[[*a, *b] for a, b in zip(first.warm_s, second.warm_s, strict=False)],
        noise_floor=max(first.noise_floor, second.noise_floor),
        tail=min(first.tail, second.tail) / 2,
    )
    duels = duels_of(field, joint)
    if winners[0] == winners[1]:
        winner = winners[0]
        reason = f"{_reason(field, duels, winner)}; two races agree"
    else:
        holder = holder_of(field)
        winner = min(winners, key=lambda i: field[i].place) if holder is None else holder
        names = " and ".join(field[i].name for i in winners)
        reason = f"tie: {field[winner].name} kept, two races had different winners ({names})"
    ties = sorted({*duels.ties(winner), *winners} - {winner})
    return _result(op, case, field, joint, duels, (winner, reason, ties), dram_bytes_per_s, tried)


def digest(samples: Sequence[float]) -> str:
    """SHA-256 (16 hex digits) of samples, so that a registry entry can be traced to its journal."""
    return hashlib.sha256(json.dumps(list(samples)).encode()).hexdigest()[:16]
