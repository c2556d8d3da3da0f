"""A run that is planned by time: on an H100 that is not there, with candidates that only let a clock go on."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest
from rich.console import Console

from griffin_kernels import catalog, device, registry
from roofline.ceilings import Ceiling
from tests.small_tune import Quiet
from tests.tuning.test_progress import Clock
from tuning import run as runs
from tuning.decide import decider, history
from tuning.plan import planner
from tuning.plan.budget import BUDGETS, UNQUIET
from tuning.plan.planner import WEIGHTS, Options
from tuning.plan.schedule import PRICES, Schedule, Watch, share
from tuning.predict import predictor
from tuning.record import journal
from tuning.record.journal_records import Candidate, Noise, Race, Result, Undecided
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.static.targets import target
from tuning.ui import terminal
from tuning.workers.messages import Broken, Raced, Tried

H100 = dataclasses.replace(target("sm_90").device, name="NVIDIA H100 80GB HBM3", units=132, memory_bytes=80 * 2**30)


class Stub:
    """An executor in which only time passes: ``pace`` times what the plan assumes. noise: of every race, by case."""

    def __init__(self, clock, pace=1.0, noise=lambda op, case, times: 0.01):
        self.clock, self.pace, self.noise = clock, pace, noise
        self.raced, self.tried = Counter(), []
        self.stop_at = None

    def load(self, request):
        self.op, self.case = request.op, request.case
        self.clock.now += self.pace * PRICES["gpu"].case

    def attempt(self, request):
        variant, config, budget = request.variant, request.config, request.budget
        if self.stop_at is not None and len(self.tried) == self.stop_at:
            raise KeyboardInterrupt
        self.tried.append((self.op, self.case.key, variant))
        prices, backend = PRICES["gpu"], catalog.variant(variant).backend
        self.clock.now += self.pace * (prices.candidate + budget.seconds + prices.compiled * (backend == "compiled"))
        took = 1e-3 + 1e-5 * (sum(map(ord, f"{variant}{config}")) % 50)
        return Tried("ok", samples_s=[took] * 3)

    def race(self, request):
        field, budget = request.field, request.budget
        place = (self.op, self.case.key)
        self.raced[place] += 1
        self.clock.now += self.pace * PRICES["gpu"].race * budget.race_seconds
        rounds = [[f.record.samples_s[0] * (1 + 1e-4 * i) for f in field] for i in range(21)]
        floor = self.noise(*place, self.raced[place])
        keys = [f.record.key for f in field]
        return Raced(Race(op=self.op, case=self.case, keys=keys, rounds_s=rounds, again_s=[r[0] for r in rounds],
                          noise_floor=floor))  # fmt: skip

    def replace(self):
        pass

    def close(self):
        pass


@pytest.fixture
def h100(monkeypatch, tmp_path):
    """Runs a plan on a faked H100: gives (outcome, stub, clock, paths); more words go to the stub."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(decider, "UNQUIET", UNQUIET)
    monkeypatch.setattr(history, "UNQUIET", UNQUIET)
    monkeypatch.setattr(runs.devices, "detect", lambda where=None: H100)
    monkeypatch.setattr(runs.devices, "provenance", lambda device: {"torch": "2.13.0"})
    monkeypatch.setattr(runs, "lane_names", lambda device, options: ["cuda:0"])
    monkeypatch.setattr(runs, "compile_pool_of", lambda *words: None)
    monkeypatch.setattr(predictor, "expected", lambda job, device: {})  # seconds for each case, and no news here
    monkeypatch.setattr(journal.os, "fsync", lambda descriptor: None)
    roof = Ceiling.stated("dram_copy", "bytes_per_s", 3e12, "measured", "stated")
    monkeypatch.setattr(runs.measure, "roofs", lambda device, seconds: [roof])
    monkeypatch.setattr(runs.MachineCeilings, "beside", lambda self, op, case, where: {})
    quiet = Noise(what="torch.add", seconds=1e-3, rounds=41, low=0.99, high=1.01, floor=0.01)
    monkeypatch.setattr(runs.rounds, "machine_noise", lambda device: quiet)
    clock, made, begun = Clock(), [], []
    monkeypatch.setattr(runs, "InProcessExecutor", lambda device: made[-1])

    def go(resume=False, say=None, stop_at=None, minutes=0.0, ops=(), **facts):
        made.append(Stub(clock, **facts))
        made[-1].stop_at = stop_at
        begun.append(begun[-1] if resume else Options(ops=ops, in_process=True))
        options = dataclasses.replace(begun[-1], minutes=minutes)
        paths, began = Paths.choose(tmp_path / "out", H100), clock.now
        if say is not None:
            outcome = terminal.run(
                terminal.RunOutput(say), options, tmp_path / "out", resume, "griffin tune", clock=clock
            )
        else:
            outcome = tune(options, paths, Quiet(), resume=resume, clock=clock)
        return outcome, made[-1], clock.now - began, paths

    return go


FEW = ("linear_scan", "temporal_conv1d", "rg_lru_step")
"""Ops of a shorter run: what is looked at does not depend on how many there are."""


def few():
    return planner.make(Options(ops=FEW), H100)


def ops_in_order(stub):
    return list(dict.fromkeys(op for op, _, _ in stub.tried))


def test_plan_of_a_default_run_on_an_h100_ends_in_21_minutes_and_of_a_quick_one_in_9():
    for budget, minutes in (("default", 21), ("quick", 9)):
        options = Options(budget=budget)
        jobs = planner.make(options, H100)
        schedule = Schedule(jobs, H100, options, [])
        assert schedule.left_out == 0 and len(schedule.tries) == len(jobs) > 70
        assert 0.85 * 60 * minutes < schedule.seconds <= 60 * minutes
        assert f"planned to end in about {minutes} minutes: {len(jobs)} cases" in terminal.planned_text(schedule)
        assert schedule.seconds == pytest.approx(
            schedule.start_s + schedule.after_s + sum(row.seconds for row in schedule.rows())
        )
        assert sum(row.cases for row in schedule.rows()) == len(jobs)
    thorough = Schedule(planner.make(Options(budget="thorough"), H100), H100, Options(budget="thorough"), [])
    assert all(thorough.tries[place] == slot.most for place, slot in thorough.slots.items()), "it takes what it takes"


def test_a_cpu_has_the_candidates_that_its_budget_gives():
    here = device.cpu()
    jobs = planner.make(Options(), here)
    schedule = Schedule(jobs, here, Options(), [])
    assert [schedule.tries[j.place] for j in jobs] == [BUDGETS["default"].tries(len(j.competitors)) for j in jobs]


def test_heavy_ops_come_first_and_share_a_short_time():
    assert set(WEIGHTS) <= set(catalog.ops()), "an op that there is not has a weight"
    assert sorted(planner.ops_by_weight()) == sorted(catalog.ops())
    options = Options(minutes=8)
    jobs = planner.make(options, H100)
    assert list(dict.fromkeys(job.op.name for job in jobs)) == planner.ops_by_weight()
    slots = list(Schedule(jobs, H100, options, []).slots.values())
    for seconds in (0, 60, 480, 1800, 1e6):
        tries = share(slots, seconds, True)
        assert sum(s.seconds(tries[s.place]) for s in slots if s.place in tries) <= seconds
        fitting = [s.place in tries for s in slots]
        cheapest = min(s.seconds(s.least) for s in slots)
        spent = sum(s.seconds(tries[s.place]) for s in slots if s.place in tries)
        assert all(fitting) or seconds - spent < max(s.seconds(s.least) for s in slots), cheapest
        assert all(s.least <= tries[s.place] <= s.most for s in slots if s.place in tries)
    assert len(share(slots, 60, False)) == len(slots), "without a limit none is left out"


@pytest.mark.parametrize("pace", [0.5, 1.0, 3.0])
def test_in_480_seconds_the_heaviest_ops_are_decided_and_published(h100, pace):
    outcome, stub, took, paths = h100(minutes=8, pace=pace)
    assert took <= 480
    assert took > 480 - 60 * pace, "time was left that another case would have fitted in"
    decided = [entry.op for entry in outcome.entries]
    assert decided and outcome.left and outcome.cases == len(planner.make(Options(), H100))
    assert list(dict.fromkeys(decided)) == [op for op in planner.ops_by_weight() if op in decided]
    assert ops_in_order(stub)[:2] == ["linear_scan", "linear_scan_bwd"]
    lightest = max(map(planner.ops_by_weight().index, decided))
    assert set(planner.ops_by_weight()[: min(lightest, 4)]) <= set(decided)
    assert len(registry.load_for(paths.registry, H100).entries) == len(outcome.entries)
    assert journal.unfinished(journal.read(paths.journal))


def test_what_a_limit_left_is_decided_by_a_resume_and_nothing_is_tried_again(h100):
    outcome, _, _, paths = h100(minutes=2, ops=FEW)
    assert outcome.entries and outcome.left and outcome.cases == len(few())
    again, *_ = h100(resume=True)
    assert len(again.entries) == again.cases == outcome.cases
    assert again.entries[: len(outcome.entries)] == outcome.entries
    keys = Counter(r.key for r in journal.read(paths.journal) if isinstance(r, Candidate))
    assert max(keys.values()) == 1, "a candidate was tried again"


@pytest.mark.parametrize("pace", [0.5, 2.0])
def test_a_default_run_ends_about_when_it_said(h100, pace):
    """Slower or faster machines: search is cut or goes on, and every case is decided."""
    outcome, stub, took, _ = h100(pace=pace)
    assert not outcome.left and len(outcome.entries) == outcome.cases
    least = sum(min(4, len(job.competitors)) for job in planner.make(Options(), H100))
    assert len(stub.tried) >= least
    if pace <= 1:
        assert 0.8 * 1260 < took <= 1260


def test_the_clock_is_looked_at_inside_a_case(h100):
    """Candidates take a hundred times what was planned: the first case is raced with what there is."""
    outcome, _, took, paths = h100(minutes=8, pace=60.0, ops=FEW)
    assert [e.op for e in outcome.entries] in ([], ["linear_scan"])
    assert took <= 480 + 60 * (PRICES["gpu"].candidate + PRICES["gpu"].compiled + 0.12) + 60 * 2.5
    outcome, _, took, paths = h100(minutes=16, pace=60.0, ops=FEW)
    tried = [r for r in journal.read(paths.journal) if isinstance(r, Candidate) and r.status == "ok"]
    assert len(outcome.entries) == 1 and len(tried) < 60, "search did not end with the time"
    assert len([r for r in journal.read(paths.journal) if isinstance(r, Race)]) == 1


def test_case_without_a_race_is_left_and_a_resume_races_it(h100):
    outcome, stub, _, paths = h100(minutes=2, pace=60.0, ops=FEW)
    assert (outcome.entries, stub.raced) == ((), Counter())
    assert len(outcome.left) == outcome.cases and not paths.registry.exists()
    again, _, _, _ = h100(resume=True)
    assert len(again.entries) == again.cases


@pytest.mark.parametrize("after", [0, 1, 60])
def test_interrupt_publishes_what_is_decided_and_a_resume_repeats_nothing(h100, after, capsys):
    outcome, _, _, paths = h100(stop_at=after, ops=FEW, say=Console(width=300, force_terminal=False))
    text = capsys.readouterr().out
    decided = [r.entry for r in journal.read(paths.journal) if isinstance(r, Result)]
    assert outcome.interrupted and list(outcome.entries) == decided
    assert len(outcome.left) == outcome.cases - len(decided)
    verb = "is" if len(decided) == 1 else "are"
    said = f"{len(decided)} of {outcome.cases} cases {verb} decided" if decided else f"none of {len(few())} cases"
    assert f"interrupted: {said}" in text and "go on with: griffin tune --resume --out " in text
    assert paths.registry.exists() == bool(decided)
    tried = [r for r in journal.read(paths.journal) if isinstance(r, Candidate) and r.status != "rejected"]
    assert len(tried) == after and {r.status for r in tried} <= {"ok", "skipped"}
    again, *_ = h100(resume=True)
    assert len(again.entries) == again.cases and again.entries[: len(decided)] == outcome.entries
    keys = Counter(r.key for r in journal.read(paths.journal) if isinstance(r, Candidate))
    assert max(keys.values()) == 1


def test_counts_add_up_in_everything_that_a_run_says(h100, capsys):
    for facts in ({"stop_at": 150, "ops": FEW}, {"resume": True, "minutes": 1.0}, {"resume": True}):
        outcome, *_ = h100(say=Console(width=300, force_terminal=False), **facts)
        text = capsys.readouterr().out
        assert outcome.cases == len(few())
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)(?: of |/)(\d+)", text)]
        assert len(pairs) > 2 and all(done <= total for done, total in pairs), text
    assert re.search(r"\[(\d+)/\1, left 0:00\]", text), "the last case leaves nothing"


def test_prices_of_an_earlier_run_take_the_place_of_what_is_assumed(h100):
    *_, paths = h100(pace=0.5, ops=FEW)
    options = Options(ops=FEW, minutes=3)
    jobs = planner.make(options, H100)
    earlier = journal.read(paths.journal)
    schedule = Schedule(jobs, H100, options, earlier)
    assert "priced by" in schedule.assumptions()
    first = schedule.slots[jobs[0].place]
    assert first.each_s < 0.8 * Schedule(jobs, H100, options, []).slots[jobs[0].place].each_s
    assert schedule.candidates > Schedule(jobs, H100, options, []).candidates


def test_dry_run_estimates_minutes_for_each_op_and_in_all(h100, capsys):
    terminal.show_plan(Console(width=200), Options())
    text = capsys.readouterr().out
    cases = len(planner.make(Options(), H100))
    planned = rf"planned to end in about 21 minutes: {cases} cases, \d+ candidates tried \(assumed 0\.92 s"
    assert re.search(planned, text)
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+\.\d)$", text, re.MULTILINE)
    assert [row[0] for row in rows] == planner.ops_by_weight()
    assert sum(int(row[1]) for row in rows) == cases
    assert sum(float(row[3]) for row in rows) == pytest.approx(21 - (40 + 45) / 60, abs=0.8)
    terminal.show_plan(Console(width=200), Options(minutes=8))
    text = capsys.readouterr().out
    assert re.search(r"about 8 minutes: \d\d cases, .*; \d\d cases do not fit and are left for --resume", text)
    assert "no time" in text


def test_watch_has_one_clock():
    clock = Clock()
    watch = Watch(clock, 10.0)
    clock.now += 4
    assert (watch.elapsed, watch.left, watch.over(), watch.over(6.0)) == (4.0, 6.0, False, True)


# --- races that are too noisy


def noisy(*places):
    return lambda op, case, times: 0.35 if (op, case) in places else 0.01


def test_a_race_that_is_too_noisy_is_run_again_and_then_decides_nothing(h100, capsys):
    jobs = few()
    bad, once = jobs[1].place, jobs[2].place

    def noise(op, case, times):
        return 0.35 if (op, case) == bad or ((op, case) == once and times == 1) else 0.01

    outcome, stub, _, paths = h100(ops=FEW, noise=noise, say=Console(width=300, force_terminal=False))
    text = capsys.readouterr().out
    assert (stub.raced[bad], stub.raced[once], stub.raced[jobs[0].place]) == (2, 2, 1)
    assert [(u.op, u.case.key) for u in outcome.undecided] == [bad]
    assert len(outcome.entries) == outcome.cases - 1
    assert all((e.noise_floor or 0) <= UNQUIET for e in registry.load_for(paths.registry, H100).entries)
    assert bad not in {(e.op, e.case.key) for e in registry.load_for(paths.registry, H100).entries}
    command = f"griffin tune --ops {bad[0]} --cases {bad[1]} --out {paths.journal.parent}"
    (record,) = [r for r in journal.read(paths.journal) if isinstance(r, Undecided)]
    assert (record.noise_floor, record.command) == (0.35, command)
    assert text.count(f"{bad[0]} {bad[1]} is undecided: its races had a noise floor of 35%") == 2
    assert text.count(f"repeat with: {command}") == 2, "in the course of the run, and in its summary"
    assert "undecided: noise floor 35%" in text and "not published" in text


def test_registry_keeps_what_was_published_before_where_a_race_is_too_noisy(h100):
    first, _, _, paths = h100(ops=FEW)
    place = (first.entries[3].op, first.entries[3].case.key)
    second, _, _, _ = h100(ops=FEW, noise=noisy(place))
    assert len(second.undecided) == 1 and len(second.entries) == second.cases - 1
    kept = registry.load_for(paths.registry, H100).entries
    assert first.entries[3] in kept and len(kept) == first.cases


def test_resume_races_again_what_a_noisy_race_left_open_and_trusts_no_noisy_result(h100):
    jobs = few()
    stopped, _, _, paths = h100(ops=FEW, noise=noisy(jobs[0].place), stop_at=60)
    assert stopped.interrupted and len(stopped.undecided) == 1
    again, stub, _, _ = h100(resume=True)
    assert len(again.entries) == again.cases and stub.raced[jobs[0].place] == 1
    assert journal.undecided(journal.read(paths.journal)) == ()


def test_result_of_an_earlier_version_with_a_noisy_race_is_not_published(h100):
    stopped, _, _, paths = h100(ops=FEW, stop_at=60)
    text = paths.journal.read_text(encoding="utf-8")
    assert '"noise_floor":0.01' in text and stopped.entries
    lines = [
        line.replace('"noise_floor":0.01', '"noise_floor":0.5') if '"kind":"result"' in line else line
        for line in text.splitlines(keepends=True)
    ]
    paths.journal.write_text("".join(lines), encoding="utf-8")
    again, stub, _, _ = h100(resume=True)
    assert all(e.noise_floor == 0.01 for e in again.entries) and stub.raced[few()[0].place] == 1


def test_broken_inputs_leave_a_case_undecided_and_count(h100, monkeypatch):
    real = Stub.attempt

    def attempt(self, *words):
        return Broken("MemoryError: no") if self.op == "rg_lru_step" else real(self, *words)

    monkeypatch.setattr(Stub, "attempt", attempt)
    outcome, _, _, _ = h100(ops=FEW)
    assert {u.op for u in outcome.undecided} == {"rg_lru_step"} and not outcome.left
    assert len(outcome.undecided) == sum(job.op.name == "rg_lru_step" for job in few())
    assert outcome.cases == len(few())
