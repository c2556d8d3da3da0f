"""A race: finalists timed in interleaved rounds on one device, until it is clear who wins or the time is over.

Each round times every finalist once, in a new random order, and the first finalist twice: the ratio of those two is the
noise floor. A baseline that is far behind sits out most rounds: its distance needs few samples, and would cost most of
the race's time. A worker runs this; the tuner makes the verdict of it (``tuning.decide.verdict``).

A group-sequential test tells which finalist beats which, when to stop, who wins and who ties. Finalists are compared by
their ratios within rounds, with Wilcoxon's signed-rank test. Of two equal kernels each is therefore as likely to be the
slower one by the same amount, in any round, and the test is exact under drift and spikes. Its level is divided
(Bonferroni) among all rivals, and among all interim looks in proportion to the square root of their rounds. In
simulated races on recorded noise these shares end clear races sooner than shares by rounds, and detect as much. Interim
looks cost power, not validity: of races between equals at most ``TAIL`` end with a difference, even before the margin.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from griffin_kernels.contract import Case, Op
from griffin_kernels.device import Device
from roofline import stats
from tuning.measure import conditions, timing
from tuning.measure.timing import Sampler
from tuning.plan.budget import INDIFFERENCE, Budget
from tuning.record.journal_records import Finalist, Noise, Race

TAIL = 0.05
"""Probability that a race of equal kernels ends with a difference."""

INTERIM_ROUNDS = (11, 21, 41, 81, 161, 321, 641, 1281)
"""Rounds after which a race is tested."""

LEAST = 9
"""Rounds at least, unless the budget has fewer: with less hardly any difference, however large, can be proven."""

ENOUGH = 0.02
"""A rival that is certainly less than this ahead is not worth further rounds."""

PROMISING = 0.03
"""An unclear race goes on where the fastest seems to be ahead of the champion by this share."""

PATIENCE = 4
"""A promising race may take this many times its time. Few races need it, and those decide what is published."""

FAR_BEHIND = 2.0
"""A baseline this much slower than every finalist of ours is far behind."""

ALWAYS, EVERY = 3, 4
"""A baseline far behind runs in the first ALWAYS rounds, and then in one of EVERY."""

WARM_SAMPLES = 9
LEAST_WARM = 3
WARM_SHARE = 0.15
"""Warm samples of each finalist, and the share of the race's time that they may take."""

SELF_ROUNDS, SELF_BYTES = 7, 16 * 2**20
"""Of the A/A test, at least: rounds, and the bytes of a tensor."""


class InterimLooks:
    """After how many rounds a race is tested. fair: rounds that there is time for; a promising race goes on longer."""

    def __init__(self, most: int, affordable: int) -> None:
        """most: rounds the budget has. affordable: those there is time for."""
        self.fair = fair = min(most, max(LEAST, affordable))
        self.after, last = [*(n for n in INTERIM_ROUNDS if 4 * n <= 3 * fair), fair], min(most, PATIENCE * fair)
        while self.after[-1] < last:
            self.after.append(min(last, 2 * self.after[-1]))

    def tail(self, count: int) -> float:
        """The share of ``TAIL`` that belongs to the look after ``count`` rounds, or to the next one."""
        return TAIL * math.sqrt(next(n for n in self.after if n >= count)) / sum(map(math.sqrt, self.after))


@dataclass(frozen=True)
class PairedComparisons:
    """Comparisons of the finalists of a race in pairs. columns: samples of each finalist, round by round.

    own: indices of finalists that may win, which baselines may not. noise: the noise floor of the race. tail:
    probability of an error. places: of the finalists in the order of trial. champion: the finalist that wins unless
    beaten: the default, without one the incumbent. incumbent: the case's winner so far. None where not in the race.
    """

    columns: tuple[tuple[float, ...], ...]
    own: tuple[int, ...]
    noise: float
    tail: float
    places: tuple[int, ...] = ()
    champion: int | None = None
    incumbent: int | None = None
    _compared: dict[tuple[int, int], tuple[float, float, float]] = dataclasses.field(default_factory=dict, init=False)

    @property
    def margin(self) -> float:
        """The proven gain, as a share, that replaces the champion."""
        return max(INDIFFERENCE, self.noise)

    def compare(self, slow: int, fast: int) -> tuple[float, float, float]:
        """(least, likely, most) that ``fast`` is faster, as a share; -1 and infinity after too few rounds."""
        if (slow, fast) not in self._compared:
            pairs = zip(self.columns[slow], self.columns[fast], strict=True)
            tail = self.tail / max(1, len(self.own) - 1)
            logs = stats.signed_rank_interval([math.log(s / f) for s, f in pairs], tail)
            self._compared[slow, fast] = tuple(math.expm1(x) for x in logs)  # type: ignore[assignment]
        return self._compared[slow, fast]

    def gain(self, slow: int, fast: int) -> float:
        """How much faster ``fast`` is, as a share."""
        return self.compare(slow, fast)[1]

    def beats(self, fast: int, slow: int) -> bool:
        """Whether ``fast`` is certainly faster, by more than the margin."""
        return self.compare(slow, fast)[0] > self.margin

    @functools.cached_property
    def fastest(self) -> int:
        """The fastest of our own finalists, by the ratios to the first of them within rounds."""
        return max(self.own, key=lambda i: self.gain(self.own[0], i))

    def clear(self) -> bool:
        """Whether every one of our own is certainly behind the fastest, or certainly as good as level with it."""
        best = self.fastest
        return all(self.beats(best, i) or self.compare(i, best)[2] <= ENOUGH for i in self.own if i != best)

    def winner(self) -> int:
        """The finalist that wins: the champion, unless the fastest certainly beats it.

        A beaten champion is replaced by the incumbent, unless the fastest certainly beats that too, or else by the
        first tried of those within the indifference zone of the fastest. Whoever replaces the champion must certainly
        beat it.
        """
        best = self.fastest
        if self.champion is not None and not self.beats(best, self.champion):
            return self.champion
        able = [i for i in self.own if self.champion is None or i == best or self.beats(i, self.champion)]
        if self.incumbent is not None and self.incumbent in able and not self.beats(best, self.incumbent):
            return self.incumbent
        return min((i for i in able if self.gain(i, best) <= INDIFFERENCE), key=lambda i: self.places[i])

    def ties(self, winner: int) -> list[int]:
        """Our own finalists that the winner does not certainly beat."""
        return [i for i in self.own if i != winner and not self.beats(winner, i)]

    def promising(self) -> bool:
        """Whether further rounds of an unclear race may yet dethrone the champion, or there is no champion."""
        return self.champion is None or self.gain(self.champion, self.fastest) > PROMISING


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
    for ``PATIENCE`` times its rounds; its time times that ends any race of ``LEAST`` rounds.
    """
    order = random.Random(f"{op.name}/{case.key}")
    first_s = [stats.median(f.record.samples_s) for f in field]
    slowest = max(s for f, s in zip(field, first_s, strict=True) if not f.record.baseline)
    far = {i for i, f in enumerate(field) if f.record.baseline and first_s[i] > FAR_BEHIND * slowest}
    per_round = first_s[0] + sum(s / EVERY if i in far else s for i, s in enumerate(first_s))
    interim = InterimLooks(budget.rounds, int(budget.race_seconds / per_round))
    began, most_s = clock(), PATIENCE * budget.race_seconds
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
        if count == interim.after[-1] or (count >= LEAST and clock() - began > most_s):
            break
        if count in interim.after:
            comparisons = comparisons_of(field, heat([]))
            if comparisons.clear() or (count == interim.fair and not comparisons.promising()):
                break
    # finalists take turns as blocks, so that inputs stay cached
    warm_s: list[list[float]] = [[] for _ in warm]
    asked = [(index, make) for index, make in enumerate(warm) if make is not None]
    for index, make in asked:
        announce(index)
        until, sampler = clock() + WARM_SHARE * budget.race_seconds / len(asked), make()
        while len(warm_s[index]) < LEAST_WARM or (len(warm_s[index]) < WARM_SAMPLES and clock() < until):
            announce(index)
            warm_s[index].append(sampler())
    return heat(warm_s)


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


def machine_noise(device: Device) -> Noise:
    """The A/A test of a machine, before anything is tuned: a memory-bound PyTorch kernel raced against itself.

    The kernel adds two tensors into a third, each as large as the last-level cache, so that every call reads DRAM.
    """
    size = max(SELF_BYTES, device.last_level_cache_bytes)
    left, right, out = (torch.ones(size // 4, device=device.torch_device, dtype=torch.float32) for _ in range(3))
    inputs = timing.Rotation([None])
    pair = [timing.sampler(lambda _: torch.add(left, right, out=out), inputs, device) for _ in range(2)]
    conditions.read(device)
    times = against_itself(pair, rounds=41, seconds=2.0)
    low, high, floor = stats.noise_floor(*times)
    return Noise(
        what=f"torch.add of float32 tensors of {size >> 20} MiB", seconds=stats.median(times[0]), rounds=len(times[0]),
        low=low, high=high, floor=floor, conditions=conditions.read(device),
    )  # fmt: skip


def against_itself(
    pair: list[Sampler], rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Samples of two samplers in rounds of random order, ``SELF_ROUNDS`` of them at least."""
    order = random.Random("A/A")
    times: tuple[list[float], list[float]] = [], []
    began = clock()
    while len(times[0]) < rounds and (len(times[0]) < SELF_ROUNDS or clock() - began < seconds):
        for index in order.sample((0, 1), 2):
            times[index].append(pair[index]())
    return times
