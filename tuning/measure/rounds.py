"""A race: finalists timed in interleaved rounds on one device, until it is clear who wins or the time is over.

Each round times every finalist once, in a new random order, and the first finalist twice: the ratio of those two is the
noise floor. A baseline that is far behind sits out most rounds: its distance needs few samples, and would cost most of
the race's time. A worker runs this; the tuner makes the verdict of it (``tuning.decide.verdict``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from griffin_kernels.contract import Case, Op
from roofline import stats
from tuning.measure import sequential_test
from tuning.measure.finalist import Finalist
from tuning.measure.sequential_test import InterimLooks, PairedComparisons
from tuning.measure.timing import Sampler
from tuning.plan.budget import Budget
from tuning.record.journal_records import Race

FAR_BEHIND = 2.0
"""A baseline this much slower than every finalist of ours is far behind."""

ALWAYS, EVERY = 3, 4
"""A baseline far behind runs in the first ALWAYS rounds, and then in one of EVERY."""

WARM_SAMPLES = 9
LEAST_WARM = 3
WARM_SHARE = 0.15
"""Warm samples of each finalist, and the share of the race's time that they may take."""


def run(
    op: Op,
    case: Case,
    field: Sequence[Finalist],
    samplers: Sequence[Sampler],
    budget: Budget,
    *,
    warm: Sequence[Callable[[], Sampler] | None] = (),
    announce: Callable[[int], None] = lambda index: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time the finalists in rounds until it is clear who wins, or ``budget.race_seconds`` are over.

    samplers: one for each finalist. warm: makes a finalist's warm sampler; None where that is not asked for, as of
    baselines. announce: told whose turn it is before each sample. clock: seconds.
    The order within a round is random, from a seed of the case. A race that is unclear but promising goes on
    for ``PATIENCE`` times its rounds; its time times that ends any race of ``LEAST`` rounds (``sequential_test``).
    """
    order = random.Random(f"{op.name}/{case.key}")
    first_s = [stats.median(f.record.samples_s) for f in field]
    far = _far_behind(field, first_s)
    per_round = first_s[0] + sum(s / EVERY if i in far else s for i, s in enumerate(first_s))
    interim = InterimLooks.plan(budget.rounds, int(budget.race_seconds / per_round))
    began, most_s = clock(), sequential_test.PATIENCE * budget.race_seconds
    rounds_s: list[list[float | None]] = []
    again_s: list[float] = []

    def heat(warm_s: list[list[float]]) -> Race:
        return Race(
            op=op.name,
            case=case,
            keys=[f.record.key for f in field],
            rounds_s=rounds_s,
            again_s=again_s,
            noise_floor=stats.noise_floor([r[0] for r in rounds_s if r[0] is not None], again_s)[2],
            warm_s=warm_s,
            tail=interim.tail(len(rounds_s)),
        )

    while True:
        times: dict[int, float] = {}
        out = far if len(rounds_s) >= ALWAYS and len(rounds_s) % EVERY else ()
        for index in order.sample([*range(len(field)), -1], len(field) + 1):
            if index in out:
                continue
            announce(max(index, 0))
            times[index] = samplers[max(index, 0)]()
        rounds_s.append([times.get(i) for i in range(len(field))])
        again_s.append(times[-1])
        count = len(rounds_s)
        if count == interim.after[-1] or (count >= sequential_test.LEAST and clock() - began > most_s):
            break
        if count in interim.after:
            comparisons = comparisons_of(field, heat([]))
            if comparisons.clear() or (count == interim.fair and not comparisons.promising()):
                break
    return heat(_warm(warm, announce, WARM_SHARE * budget.race_seconds, clock))


def _far_behind(field: Sequence[Finalist], first_s: Sequence[float]) -> frozenset[int]:
    """Indices of baselines whose first timing was far slower than that of every finalist of ours."""
    slowest = max(s for f, s in zip(field, first_s, strict=True) if not f.record.baseline)
    return frozenset(i for i, f in enumerate(field) if f.record.baseline and first_s[i] > FAR_BEHIND * slowest)


def _warm(
    warm: Sequence[Callable[[], Sampler] | None],
    announce: Callable[[int], None],
    seconds: float,
    clock: Callable[[], float],
) -> list[list[float]]:
    """Warm samples of each finalist that has a sampler. Finalists take turns as blocks, so that inputs stay cached."""
    found: list[list[float]] = [[] for _ in warm]
    asked = [(index, make) for index, make in enumerate(warm) if make is not None]
    for index, make in asked:
        announce(index)
        began, sampler = clock(), make()
        while len(found[index]) < LEAST_WARM or (
            len(found[index]) < WARM_SAMPLES and clock() - began < seconds / len(asked)
        ):
            announce(index)
            found[index].append(sampler())
    return found


def comparisons_of(field: Sequence[Finalist], race: Race) -> PairedComparisons:
    """Paired comparisons of all finalists of a race."""
    incumbent = next((i for i, f in enumerate(field) if f.incumbent), None)
    return PairedComparisons(
        columns=tuple(tuple(race.times(i)) for i in range(len(field))),
        own=tuple(i for i, f in enumerate(field) if not f.record.baseline),
        noise=race.noise_floor,
        tail=race.tail,
        places=tuple(f.place for f in field),
        champion=0 if field[0].record.is_default else incumbent,
        incumbent=incumbent,
    )
