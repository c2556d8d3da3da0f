"""The final race: who wins, who ties, how long it takes, on made-up rounds and on recorded noise."""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from griffin_kernels import catalog
from griffin_kernels.contract import NoConfig
from griffin_kernels.records import Tie
from roofline import stats
from roofline.ceilings import Ceiling, Ceilings
from tests import recorded_noise
from tuning.decide import verdict
from tuning.measure import rounds
from tuning.measure.rounds import InterimLooks, PairedComparisons
from tuning.plan.budget import BUDGETS, INDIFFERENCE
from tuning.plan.planner import Planned
from tuning.record.journal_records import Candidate, Finalist, Race

OP = catalog.op("linear_scan")
CASE = OP.cases_tagged("smoke")[0]
VARIANT = catalog.variant("linear_scan/eager.sequential")
KNOWN = Ceilings("a machine", (Ceiling.stated("dram_copy", "bytes_per_s", 1e9, "measured", "stated"),))
RACES = 50


@dataclass(frozen=True)
class Made:
    """A finalist of no substance."""

    baseline: bool = False
    default: bool = False
    incumbent: bool = False
    first_s: float = 1.0


OWN, DEFAULT, BASELINE, INCUMBENT = Made(), Made(default=True), Made(baseline=True), Made(incumbent=True)


def finalist(index: int, kind: Made) -> Finalist:
    record = Candidate(
        key=f"v{index}", op=OP.name, variant=f"eager.v{index}", case=CASE.plain(), config={},
        baseline=kind.baseline, is_default=kind.default, status="ok", samples_s=[kind.first_s] * 3,
    )  # fmt: skip
    return Finalist(record, kind.incumbent, index)


def made(columns, kinds, noise_floor=0.0):
    """(field, race) of made-up rounds, a column for each finalist."""
    field = [finalist(i, kind) for i, kind in enumerate(kinds)]
    rows = [list(r) for r in zip(*columns, strict=True)]
    keys = [f.record.key for f in field]
    heat = Race(op=OP.name, case=field[0].record.case, keys=keys, rounds_s=rows, noise_floor=noise_floor)
    return field, heat


def decide(columns, kinds, noise_floor=0.0):
    field, heat = made(columns, kinds, noise_floor)
    return verdict.decide(OP, field, heat, KNOWN, len(field))


def wobbling(seconds, seed, count=31, width=0.01):
    return (seconds * np.exp(np.random.default_rng(seed).normal(0, width, count))).tolist()


def test_clearly_faster_candidate_replaces_the_default():
    result = decide([[1.0, 1.02, 0.99] * 5, [0.8, 0.81, 0.79] * 5, [2.0] * 15], [DEFAULT, OWN, BASELINE], 0.01)
    assert (result.winner_key, result.baseline_key) == ("v1", "v2")
    assert result.entry.speedup == pytest.approx(2.5, rel=0.02)
    assert "faster than the default" in result.entry.reason
    assert (result.entry.noise_floor, result.entry.ties) == (0.01, [])


@pytest.mark.parametrize(
    ("gain", "floor"), [(0.9 * INDIFFERENCE, 0.0), (0.08, 0.10)], ids=["indifference", "noise floor"]
)
def test_small_gain_keeps_the_default_and_names_the_tie(gain, floor):
    result = decide([[1.0] * 15, [1 / (1 + gain)] * 15, [2.0] * 15], [DEFAULT, OWN, BASELINE], floor)
    assert result.winner_key == "v0"
    assert result.entry.reason.startswith("tie")
    assert result.entry.ties == [Tie("eager.v1", {})]


def test_too_few_rounds_prove_nothing():
    result = decide([[1.0] * 3, [0.5] * 3], [DEFAULT, OWN])
    assert (result.winner_key, result.entry.ties) == ("v0", [Tie("eager.v1", {})])
    assert "100.0% ahead, in too few rounds for a proof" in result.entry.reason


def test_without_a_baseline_there_is_no_speedup():
    result = decide([[1.0] * 9, [0.5] * 9], [DEFAULT, OWN])
    assert (result.entry.speedup, result.baseline_key, result.entry.warm_median_s) == (None, None, None)


def test_baselines_neither_win_nor_tie():
    result = decide([[1.0] * 15, [0.5] * 15], [DEFAULT, BASELINE])
    assert (result.winner_key, result.entry.ties) == ("v0", [])
    assert result.entry.speedup == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "kinds", "winner"),
    [
        ((1.0, 0.7, 0.72), (DEFAULT, OWN, INCUMBENT), "v1"),
        ((1.0, 0.7, 0.705), (DEFAULT, OWN, INCUMBENT), "v2"),
        ((1.0, 1.01, 0.99), (DEFAULT, INCUMBENT, OWN), "v0"),
        ((0.7, 0.705, 0.71), (INCUMBENT, OWN, OWN), "v0"),
        ((0.8, 0.7, 0.7), (INCUMBENT, OWN, OWN), "v1"),
        ((0.705, 0.7, 0.9), (OWN, OWN, OWN), "v0"),
        ((1.0, 0.7, 0.698), (DEFAULT, OWN, OWN), "v1"),
    ],
    ids=[
        "incumbent beaten",
        "incumbent level",
        "default level",
        "incumbent holds where no default runs",
        "incumbent beaten where no default runs",
        "first of equals",
        "first of equals that beat the default",
    ],
)
def test_who_holds_the_place(seconds, kinds, winner):
    columns = [wobbling(s, seed, width=0.002) for seed, s in enumerate(seconds)]
    result = decide([*columns, [2.0] * 31], [*kinds, BASELINE])
    assert result.winner_key == winner, result.entry.reason


def test_reason_of_a_level_winner_names_what_it_is_tied_with():
    result = decide([wobbling(s, i, width=0.002) for i, s in enumerate((1.0, 0.7, 0.697))], [DEFAULT, OWN, OWN])
    assert result.entry.reason.endswith("; tied with eager.v2")
    assert result.entry.ties == [Tie("eager.v2", {})]


def test_finalists_hold_the_default_the_incumbent_the_fastest_and_one_baseline():
    def candidate(name, seconds, baseline=False, status="ok"):
        made = finalist(0, Made(baseline=baseline, first_s=seconds))
        return Planned(VARIANT, NoConfig()), msgspec.structs.replace(made.record, key=name, status=status)

    done = [
        candidate("default", 9.0),
        candidate("a", 3.0),
        candidate("b", 1.0),
        candidate("c", 2.0),
        candidate("slow", 0.1, status="slow"),
        candidate("base1", 5.0, baseline=True),
        candidate("base2", 4.0, baseline=True),
    ]
    default, incumbent = done[0][0], done[1][0]
    assert [f.record.key for f in verdict.finalists(done, default, 2)] == ["default", "b", "c", "base2"]
    field = verdict.finalists(done, default, 2, incumbent)
    assert [f.record.key for f in field] == ["default", "a", "b", "c", "base2"]
    assert [f.incumbent for f in field] == [False, True, False, False, False]
    assert [f.place for f in field] == [0, 1, 2, 3, 6]
    assert [f.record.key for f in verdict.finalists(done, default, 2, done[2][0])] == ["default", "b", "c", "base2"]
    assert [f.record.key for f in verdict.finalists(done, None, 1)] == ["b", "base2"]


def simulate(machine, seconds, kinds=None, budget=BUDGETS["default"], **more):
    """A race of kernels that take ``seconds``, on a machine with recorded noise."""
    kinds = kinds or [DEFAULT, *[OWN] * (len(seconds) - 1)]
    field = [finalist(i, dataclasses.replace(kind, first_s=seconds[i])) for i, kind in enumerate(kinds)]
    samplers = [machine.sampler(s) for s in seconds]
    heat = rounds.run(OP, CASE, field, samplers, budget, clock=machine.clock, **more)
    return verdict.decide(OP, field, heat, KNOWN, len(field)), heat


def replaced(name, gain, seconds=2e-3, budget=BUDGETS["default"]):
    """In how many of 50 races, each at another moment of the recording, the second kernel replaces the first."""
    recorded = recorded_noise.series(name)
    starts = random.Random(name).sample(range(len(recorded)), RACES)
    found = 0
    for start in starts:
        machine = recorded_noise.Machine(recorded, start)
        result, _ = simulate(machine, [seconds, seconds * (1 - gain)], budget=budget)
        found += result.winner_key == "v1"
    print(f"{name}, {gain:.0%} less work: replaced in {found} of {RACES}")
    return found


@pytest.mark.parametrize("seconds", [2e-4, 2e-3], ids=["0.2 ms", "2 ms"])
@pytest.mark.parametrize("name", ["quiet", "busy", "crowded"])
def test_of_fifty_races_of_a_kernel_against_itself_three_at_most_declare_a_difference(name, seconds):
    assert replaced(name, 0.0, seconds) <= 3


@pytest.mark.parametrize("seconds", [2e-4, 2e-3], ids=["0.2 ms", "2 ms"])
def test_five_percent_less_work_is_found_in_45_of_fifty_races(seconds):
    assert replaced("quiet", 0.05, seconds) >= 45


@pytest.mark.parametrize("seconds", [5e-4, 2e-3], ids=["0.5 ms", "2 ms"])
def test_five_percent_less_work_is_found_on_a_busy_machine_too(seconds):
    assert replaced("busy", 0.05, seconds) >= 45


@pytest.mark.parametrize("seconds", [5e-4, 6e-3], ids=["0.5 ms", "6 ms"])
def test_thorough_budget_finds_five_percent_of_longer_kernels_on_a_busy_machine_too(seconds):
    assert replaced("busy", 0.05, seconds, BUDGETS["thorough"]) >= 45


@pytest.mark.parametrize("seconds", [2e-3, 2e-2], ids=["2 ms", "20 ms"])
def test_twenty_percent_less_work_is_found_on_a_busy_machine(seconds):
    assert replaced("busy", 0.20, seconds) >= 45


def test_two_runs_in_a_row_agree_or_call_it_a_tie():
    """Five finalists a few percent apart, each pair of races at two moments of the busy recording."""
    recorded, chance, agreed = recorded_noise.series("busy"), random.Random(3), 0
    for _ in range(RACES):
        seconds = [1e-3 * chance.uniform(0.9, 1.1) for _ in range(5)]
        entries = [
            simulate(recorded_noise.Machine(recorded, chance.randrange(len(recorded))), seconds)[0].entry
            for _ in range(2)
        ]
        first, second = entries
        agreed += first.variant in {second.variant, *(t.variant for t in second.ties)} or second.variant in {
            t.variant for t in first.ties
        }
    assert agreed >= 0.9 * RACES


def test_clear_race_ends_early_and_an_unclear_one_has_its_time():
    machine = recorded_noise.Machine(recorded_noise.series("quiet"), 0)
    _, clear = simulate(machine, [2e-3, 1e-3])
    assert len(clear.rounds_s) == rounds.INTERIM_ROUNDS[0]
    began = machine.now
    budget = BUDGETS["default"]
    _, unclear = simulate(machine, [2e-3, 2e-3])
    assert len(unclear.rounds_s) > 5 * rounds.INTERIM_ROUNDS[0]
    assert machine.now - began < 1.5 * budget.race_seconds
    _, short = simulate(machine, [2.0, 1.9], budget=BUDGETS["quick"])
    assert len(short.rounds_s) == BUDGETS["quick"].rounds


def test_slow_kernels_have_as_many_rounds_as_a_proof_takes():
    machine = recorded_noise.Machine(np.ones(10), 0)
    result, heat = simulate(machine, [10.0, 5.0, 9.0])
    assert rounds.LEAST <= len(heat.rounds_s) <= 2 * rounds.LEAST
    assert result.winner_key == "v1"


def test_race_takes_turns_in_a_random_order_with_the_first_twice_and_says_whose_turn_it_is():
    machine = recorded_noise.Machine(recorded_noise.series("quiet"), 0)
    turns: list[int] = []
    warm = [lambda s=s: machine.sampler(s) for s in (1e-3, 9e-4, 8e-4)]
    _, heat = simulate(machine, [2e-3, 2e-3, 1e-3], [DEFAULT, OWN, BASELINE], announce=turns.append, warm=warm)
    cold = len(heat.rounds_s)
    each_round = [turns[4 * i : 4 * i + 4] for i in range(cold)]
    assert all(sorted(each) == [0, 0, 1, 2] for each in each_round)
    assert len({tuple(each) for each in each_round}) > 6
    assert [len(each) for each in heat.warm_s] == [rounds.WARM_SAMPLES] * 3
    # the making of a warm sampler is announced too
    assert turns[4 * cold :] == [i for i in range(3) for _ in range(rounds.WARM_SAMPLES + 1)]
    assert len(heat.again_s) == cold
    low, high = stats.paired_ratio_interval(heat.times(0), heat.again_s)
    assert heat.noise_floor == pytest.approx(max(abs(1 - low), abs(high - 1)))


def test_baseline_far_behind_sits_out_most_rounds_and_is_compared_within_those_it_ran():
    machine = recorded_noise.Machine(recorded_noise.series("quiet"), 0)
    result, heat = simulate(machine, [2e-3, 2e-3, 4.5e-3], [DEFAULT, OWN, BASELINE])
    ran = [i for i, row in enumerate(heat.rounds_s) if row[2] is not None]
    assert ran == [i for i in range(len(heat.rounds_s)) if i < rounds.ALWAYS or i % rounds.EVERY == 0]
    assert len(heat.times(0)) == len(heat.times(1)) == len(heat.rounds_s) > len(ran)
    slow, fast = heat.pairs(2, heat.keys.index(result.winner_key))
    assert len(slow) == len(ran)
    low, high = stats.paired_ratio_interval(slow, fast)
    assert result.entry.speedup_interval == (low, high)
    assert low < 2.25 < high
    _, near = simulate(machine, [2e-3, 2e-3, 3.5e-3], [DEFAULT, OWN, BASELINE])
    assert None not in itertools.chain(*near.rounds_s)


def test_warm_median_is_the_winners():
    field, heat = made([[1.0] * 15, [0.5] * 15], [DEFAULT, OWN])
    heat = msgspec.structs.replace(heat, warm_s=[[0.9, 0.8, 0.7], [0.4, 0.3, 0.2]])
    assert verdict.decide(OP, field, heat, KNOWN, 2).entry.warm_median_s == 0.3


@pytest.mark.parametrize("most", [7, 61, 321, 641])
@pytest.mark.parametrize("affordable", [0, 1, 10, 30, 100, 1000])
def test_looks_grow_end_within_the_budget_and_share_the_level(most, affordable):
    interim = InterimLooks(most, affordable)
    assert list(interim.after) == sorted(set(interim.after))
    assert interim.fair in interim.after
    assert interim.after[-1] <= most
    assert sum(interim.tail(n) for n in interim.after) == pytest.approx(rounds.TAIL)
    assert interim.tail(1) == interim.tail(interim.after[0])


def test_clear_means_that_every_rival_is_behind_or_level():
    def comparisons(*seconds, width=0.002):
        columns = tuple(tuple(wobbling(s, i, 41, width)) for i, s in enumerate(seconds))
        return PairedComparisons(columns, tuple(range(len(seconds))), 0.0, rounds.TAIL)

    assert comparisons(1.0, 0.8).clear()
    assert comparisons(1.0, 1.0).clear()
    assert not comparisons(1.0, 1.0, width=0.2).clear()
    assert not comparisons(0.8, 1.0, 0.8, width=0.1).clear()
    assert comparisons(1.0).clear()


def test_surprise_is_a_change_of_standing_and_not_of_the_machine():
    field, heat = made([[2.0] * 15, [1.0] * 15, [4.0] * 15], [DEFAULT, Made(first_s=0.5), BASELINE])
    field = [finalist(0, Made(default=True, first_s=1.0)), field[1], finalist(2, Made(baseline=True, first_s=2.0))]
    entry = verdict.decide(OP, field, heat, KNOWN, 3).entry
    assert entry.variant == "eager.v1"
    assert verdict.surprise(field, heat, entry) is None
    field[1] = finalist(1, Made(first_s=0.9))
    assert verdict.surprise(field, heat, entry) == "eager.v1 was 80% faster in the race than when it was first timed"
    field[1] = finalist(1, Made(first_s=0.4))
    assert verdict.surprise(field, heat, entry) == "eager.v1 was 25% slower in the race than when it was first timed"


def test_surprise_against_the_registry_is_of_the_speedup_where_the_baseline_is_the_same():
    field, heat = made([[1.0] * 15, [0.5] * 15, [2.0] * 15], [DEFAULT, Made(first_s=0.5), Made(True, first_s=2.0)])
    entry = verdict.decide(OP, field, heat, KNOWN, 3).entry
    replace = msgspec.structs.replace
    assert verdict.surprise(field, heat, entry, replace(entry, median_s=5.0)) is None
    text = "eager.v1 has a speedup over eager.v2 of 4, the registry had 3"
    assert verdict.surprise(field, heat, entry, replace(entry, speedup=3.0)) == text
    text = "eager.v1 has a median in seconds of 0.5, the registry had 0.4"
    assert verdict.surprise(field, heat, entry, replace(entry, baseline="another", median_s=0.4)) == text
    assert verdict.surprise(field, heat, entry, replace(entry, variant="eager.v0", speedup=3.0)) is None


def test_races_that_agree_are_joined():
    field, first = made([[1.0] * 15, [0.8] * 15], [DEFAULT, OWN])
    _, second = made([[1.0] * 11, [0.7] * 11], [DEFAULT, OWN], 0.02)
    result = verdict.decide(OP, field, first, KNOWN, 2, second)
    assert result.winner_key == "v1"
    assert result.entry.reason.endswith("two races agree")
    assert result.entry.median_s == 0.8
    assert result.entry.noise_floor == 0.02
    assert result.entry.samples_digest == verdict.digest([0.8] * 15 + [0.7] * 11)


@pytest.mark.parametrize(
    ("kinds", "winner"), [((DEFAULT, OWN, OWN), "v0"), ((OWN, OWN, INCUMBENT), "v2"), ((OWN, OWN, OWN), "v1")]
)
def test_races_that_differ_are_a_tie(kinds, winner):
    field, first = made([[1.0] * 15, [0.8] * 15, [0.9] * 15], kinds)
    _, second = made([[1.0] * 15, [0.9] * 15, [0.8] * 15], kinds)
    result = verdict.decide(OP, field, first, KNOWN, 3, second)
    assert result.winner_key == winner
    assert result.entry.reason.startswith("tie: ")
    assert "two races had different winners (eager.v1 and eager.v2)" in result.entry.reason
    assert {t.variant for t in result.entry.ties} >= {"eager.v1", "eager.v2"} - {f"eager.{winner}"}


def test_noise_of_a_machine_against_itself():
    machine = recorded_noise.Machine(recorded_noise.series("quiet"), 5)
    pair = [machine.sampler(1e-3), machine.sampler(1e-3)]
    times = rounds.against_itself(pair, 41, 1.0, machine.clock)
    assert [len(column) for column in times] == [41, 41]
    low, high, floor = stats.noise_floor(*times)
    assert low <= 1 <= high
    assert floor == max(1 - low, high - 1) > 0
    times = rounds.against_itself(pair, 41, 0.0, machine.clock)
    assert len(times[0]) == rounds.SELF_ROUNDS


def test_signed_rank_interval_is_that_of_the_tables():
    """Critical values of Wilcoxon's T, one-sided 0.025 and 0.005, as in every table: 10: 8 and 3, 20: 52 and 37."""
    for count, values in ((10, (8, 3)), (20, (52, 37))):
        samples = np.random.default_rng(count).normal(size=count)
        walsh = np.sort([(a + b) / 2 for i, a in enumerate(samples) for b in samples[i:]])
        for tail, critical in zip((0.025, 0.005), values, strict=True):
            low, middle, high = stats.signed_rank_interval(samples, tail)
            assert (low, high) == (walsh[critical], walsh[-1 - critical])
            assert middle == np.median(walsh)
    low, _, high = stats.signed_rank_interval([1.0, 2.0, 3.0], 0.05)
    assert (low, high) == (-np.inf, np.inf)
