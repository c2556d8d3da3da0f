"""The verdict of a race: who enters the final of a case, who wins it, and whether it is to be run again."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence

import msgspec

from griffin_kernels.contract import Op
from griffin_kernels.records import Entry, Tie
from roofline import stats
from roofline.ceilings import Ceilings
from roofline.floors import judged
from tuning.measure.rounds import PairedComparisons, comparisons_of
from tuning.plan.planner import Planned
from tuning.record.journal_records import Candidate, Finalist, Race, Result

SURPRISE = 0.10
"""Share by which a race must differ from what was known to be run again."""


def finalists(
    done: Sequence[tuple[Planned, Candidate]], default: Planned | None, most: int, incumbent: Planned | None = None
) -> list[Finalist]:
    """The finalists in order: the default, the incumbent, the ``most`` fastest candidates, the fastest baseline."""
    usable = sorted(
        (Finalist(r, p is incumbent, place) for place, (p, r) in enumerate(done) if r.status == "ok"),
        key=lambda finalist: stats.median(finalist.record.samples_s),
    )
    own = [f for f in usable if not f.record.baseline]
    baselines = [f for f in usable if f.record.baseline]
    first = [f for f in own if done[f.place][0] is default]
    holders = [*first, *(f for f in own if f.incumbent and f not in first)]
    return [*holders, *(f for f in own[:most] if f not in holders), *baselines[:1]]


def decide(
    op: Op, field: Sequence[Finalist], race: Race, ceilings: Ceilings, tried: int, second: Race | None = None
) -> Result:
    """The winner of a race, or of two races of the same finalists, as a registry entry.

    The default (else the incumbent) keeps its place unless another's gain over it, at the lower end of its interval,
    exceeds both the indifference zone and the noise floor. Of the others within the indifference zone of the fastest
    the one that was tried first wins. Two races with the same winner are decided on the samples of both; with different
    winners it is a tie, and without a default or incumbent whichever of the two was tried first wins.
    ceilings: of the device; the one that binds the case is named. tried: candidates that ran.
    """
    winners = [comparisons_of(field, each).winner() for each in (race, second) if each is not None]
    if second is not None:
        race = msgspec.structs.replace(
            second,
            rounds_s=[*race.rounds_s, *second.rounds_s],
            again_s=[*race.again_s, *second.again_s],
            warm_s=[[*a, *b] for a, b in zip(race.warm_s, second.warm_s, strict=False)],
            noise_floor=max(race.noise_floor, second.noise_floor),
            tail=min(race.tail, second.tail) / 2,
        )
    comparisons = comparisons_of(field, race)
    champion = comparisons.champion
    if len(set(winners)) == 1:
        winner = winners[0]
        reason = _reason(field, comparisons, winner) + "; two races agree" * (second is not None)
    else:
        winner = min(winners, key=lambda i: field[i].place) if champion is None else champion
        names = " and ".join(field[i].name for i in winners)
        reason = f"tie: {field[winner].name} kept, two races had different winners ({names})"
    ties = sorted({*comparisons.ties(winner), *winners} - {winner})
    times, best = comparisons.columns[winner], field[winner].record
    baseline = next((i for i, f in enumerate(field) if f.record.baseline), None)
    slow, fast = ([], []) if baseline is None else race.pairs(baseline, winner)
    median = stats.median(times)
    entry = Entry(
        op=op.name,
        case=race.case,
        variant=best.variant,
        config=best.config,
        status="measured",
        source_hash=best.source_hash,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
        candidates=tried,
        median_s=median,
        interval_s=stats.bootstrap_interval(times),
        baseline=None if baseline is None else field[baseline].record.variant,
        baseline_median_s=stats.median(slow) if slow else None,
        speedup=stats.median([s / f for s, f in zip(slow, fast, strict=True)]) if slow else None,
        speedup_interval=stats.paired_ratio_interval(slow, fast) if slow else None,
        error_rel_norm=max((e.rel_norm for e in best.errors if e.rel_norm is not None), default=0.0),
        error_worst=max((e.worst for e in best.errors if e.worst is not None), default=0.0),
        samples_digest=digest(times),
        warm_median_s=stats.median(race.warm_s[winner]) if race.warm_s else None,
        noise_floor=race.noise_floor,
        ties=[Tie(field[i].record.variant, field[i].record.config) for i in ties],
    )
    baseline_key = None if baseline is None else field[baseline].record.key
    entry = judged(entry, ceilings)
    return Result(entry=entry, winner_key=best.key, baseline_key=baseline_key)


def _reason(field: Sequence[Finalist], comparisons: PairedComparisons, winner: int) -> str:
    """Why a finalist won, in words."""
    champion, best = comparisons.champion, comparisons.fastest
    level = "" if winner == best else f"; tied with {field[best].name}"
    if champion is None:
        return f"fastest; the default cannot run this case{level}"
    kept = f"the {'default' if field[champion].record.is_default else 'incumbent'} {field[champion].name}"
    if winner == champion == best:
        return f"{kept} is the fastest"
    low, likely, _ = comparisons.compare(champion, best if winner == champion else winner)
    needed = f"{comparisons.margin:.1%} needed (noise floor {comparisons.noise:.1%})"
    if winner == champion:
        proven = f"at least {low:.1%}" if low > -1 else "in too few rounds for a proof"
        return f"tie: {kept} kept, the fastest was {likely:.1%} ahead, {proven}, {needed}"
    return f"{likely:.0%} faster than {kept}, at least {low:.1%}, {needed}{level}"


def surprise(field: Sequence[Finalist], race: Race, entry: Entry, known: Entry | None = None) -> str | None:
    """A sentence on what differs by more than ``SURPRISE`` from what was known before the race; None if nothing does.

    Against the winner's first timing: in its standing among the finalists, since a machine that slows down slows all,
    and beyond the interval of those few samples. Against ``known``, an earlier entry of the same variant and
    configuration: in its speedup where both had the same baseline, else in its time.
    """
    medians = [stats.median(race.times(i)) for i in range(len(field))]
    of = (entry.variant, entry.config)
    winner = next(i for i, f in enumerate(field) if (f.record.variant, f.record.config) == of)
    drift = stats.median([m / stats.median(f.record.samples_s) for m, f in zip(medians, field, strict=True)])
    now = medians[winner] / drift
    low, high = stats.bootstrap_interval(field[winner].record.samples_s)
    allowed = 1 + max(SURPRISE, race.noise_floor)
    name = field[winner].name
    if not low / allowed <= now <= high * allowed:
        word, first = ("faster", low / now) if now < low else ("slower", now / high)
        return f"{name} was {first - 1:.0%} {word} in the race than when it was first timed"
    if known is None or (known.variant, known.config) != of:
        return None
    if known.speedup and entry.speedup and known.baseline == entry.baseline:
        before, after, what = known.speedup, entry.speedup, f"a speedup over {entry.baseline} of"
    elif known.median_s and entry.median_s:
        before, after, what = known.median_s, entry.median_s, "a median in seconds of"
    else:
        return None
    alike = 1 / allowed <= after / before <= allowed
    return None if alike else f"{name} has {what} {after:.3g}, the registry had {before:.3g}"


def digest(samples: Sequence[float]) -> str:
    """SHA-256 (16 hex digits) of samples, so that a registry entry can be traced to its journal."""
    return hashlib.sha256(json.dumps(list(samples)).encode()).hexdigest()[:16]
