"""Compiling before a candidate's turn: what is compiled in which order, and that the GPU's process finds it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest

from griffin_kernels import catalog, device, errors
from griffin_kernels.contract import NoConfig, Variant
from tests import ROOT, small_tune
from tests.small_tune import Quiet
from tuning import run as runs
from tuning.plan import planner
from tuning.plan.budget import BUDGETS
from tuning.plan.planner import Options, Planned
from tuning.record import journal
from tuning.record.journal_records import Candidate
from tuning.static.requests import compilable
from tuning.workers import compile_pool, messages, process
from tuning.workers.compile_pool import CompilePool, processes_for
from tuning.workers.messages import Compiled, Stage
from tuning.workers.process import FLOOR_S, LEARNED_FROM, Death, Limits

GIB = 2**30
HERE = device.cpu()
OP = catalog.op("linear_scan")
CASE = OP.cases_tagged("smoke")[0]
REAL = catalog.variant("linear_scan/eager.sequential")


def limits():
    return Limits(120.0, 8 * GIB)


@dataclass(frozen=True)
class Numbered:
    n: int = 0


def planted(name="planted", run=REAL.run, count=16):
    """A variant that has something to compile, in ``count`` configurations."""
    axes = {"n": tuple(range(count))}
    return Variant("linear_scan", f"eager.{name}", "", run, Numbered, axes=axes, launches=lambda *args: [])


VARIANT = planted()


def candidates(*numbers):
    return [(CASE, Planned(VARIANT, Numbered(n))) for n in numbers]


class FakeProcess:
    """Compiles nothing, when ``free`` is set; remembers what it was asked for."""

    asked: ClassVar[list[int]] = []
    limits_s: ClassVar[list[float]] = []
    replies: ClassVar[dict] = {}
    free: ClassVar[threading.Event] = threading.Event()

    def __init__(self, compiles):
        assert compiles

    def ask(self, request, limit, memory_bytes):
        self.asked.append(request.config["n"])
        self.limits_s.append(limit(Stage("compile")))
        while not self.free.wait(0.01):
            if self.killed:
                return Death("crashed", Stage(""), "was killed")
        return self.replies.get(request.config["n"], Compiled())

    killed = False

    def kill(self):
        self.killed = True

    close = kill


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeProcess, "asked", [])
    monkeypatch.setattr(FakeProcess, "limits_s", [])
    monkeypatch.setattr(FakeProcess, "replies", {})
    monkeypatch.setattr(FakeProcess, "free", threading.Event())
    monkeypatch.setattr(process, "Process", FakeProcess)
    return FakeProcess


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_who_waits_comes_first_then_what_lanes_expect_in_turn_then_what_comes_later(fake):
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch(None, iter(candidates(0, 1, 9)))
        until(lambda: fake.asked == [0])
        pool.prefetch("cuda:0", iter(candidates(2, 3)))
        pool.prefetch("cuda:1", iter(candidates(4, 3, 5)))
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(pool.problem(*candidates(6)[0])))
        waiting.start()
        until(lambda: pool._awaited)
        fake.free.set()
        waiting.join(30)
        until(lambda: len(fake.asked) == 8)
        assert answers == [None]
    assert fake.asked == [0, 6, 2, 4, 3, 5, 1, 9], "3 is expected twice and compiled once"


def test_a_lane_that_expects_something_else_is_heard_at_once(fake):
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch("", iter(candidates(*range(16))))
        until(lambda: fake.asked == [0])
        pool.prefetch("", iter(candidates(0, 7)))
        fake.free.set()
        until(lambda: len(fake.asked) == 2)
    assert fake.asked == [0, 7]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Death("timeout", Stage(""), "was killed after 120 s without an answer"), "timeout"),
        (messages.Broken("CompilationError: no"), "failed"),
    ],
)
def test_what_cannot_be_compiled_is_known_whoever_asked_for_it(fake, reply, status):
    fake.replies[1] = reply
    fake.free.set()
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch("", iter(candidates(1, 2)))
        until(lambda: len(fake.asked) == 2)
        found = pool.problem(*candidates(1)[0])
        assert (found.status, found.stage, found.problem) == (status, "compile", reply.problem)
        assert pool.problem(*candidates(2)[0]) is None
        assert pool.problem(CASE, Planned(REAL, NoConfig())) is None, "it has nothing to compile"
    assert fake.asked == [1, 2]


@pytest.mark.parametrize(("kills", "fails"), [(1, False), (2, False), (3, True)])
def test_process_that_somebody_else_kills_is_no_candidates_failure_at_once(fake, monkeypatch, kills, fails):
    left = iter([Death("crashed", Stage("compile"), "its process was asked to end (SIGTERM)", foreign=True)] * kills)
    monkeypatch.setattr(fake, "ask", lambda self, *words: next(left, Compiled()))
    with CompilePool("sm_90", 1, limits) as pool:
        assert (pool.problem(*candidates(1)[0]) is not None) == fails


def test_how_long_a_compilation_may_take_is_learned(fake):
    fake.free.set()
    fake.replies[0] = messages.Broken("CompilationError: no")
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch("", iter(candidates(*range(8))))
        until(lambda: len(fake.asked) == 8)
    learned = LEARNED_FROM + 1  # the first one failed
    assert fake.limits_s == [120.0] * learned + [3 * FLOOR_S] * (8 - learned)


def test_a_guess_that_raises_ends_that_guessing_alone(fake):
    def broken():
        yield from candidates(1)
        raise ZeroDivisionError

    fake.free.set()
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch("", broken())
        until(lambda: fake.asked == [1])
        pool.prefetch(None, iter(candidates(2)))
        until(lambda: fake.asked == [1, 2])
        assert pool.problem(*candidates(3)[0]) is None


def test_closing_ends_who_waits(fake):
    ended = []

    def ask(number):
        try:
            ended.append(pool.problem(*candidates(number)[0]))
        except errors.WorkerError as error:
            ended.append(str(error))

    with CompilePool("sm_90", 1, limits) as pool:
        waiting = [threading.Thread(target=ask, args=(number,)) for number in (1, 2)]
        for thread in waiting:
            thread.start()
        until(lambda: len(fake.asked) == 1 and len(pool._awaited) == 1)
        pool.close()
        for thread in waiting:
            thread.join(30)
        assert ended == ["the run is being stopped"] * 2, "what is killed in the end is no candidate's failure"
        with pytest.raises(errors.WorkerError, match="being stopped"):
            pool.problem(*candidates(3)[0])
    assert not any(thread.is_alive() for thread in pool._threads._threads)


@pytest.mark.parametrize("strategy", ["seeded", "exhaustive"])
def test_a_run_has_most_candidates_compiled_before_their_turn(tmp_path, monkeypatch, fake, strategy):
    """On a CPU that passes for a GPU, with a variant of 32 configurations that has something to compile."""

    def slow(call, config):
        time.sleep(0.02 + 0.001 * config.n)  # as a machine has it: what is timed takes longer than compiling
        return REAL.run(call, NoConfig())

    slow.__module__ = REAL.run.__module__
    variant = planted(run=slow, count=32)
    small_tune.shrink(monkeypatch.setattr)
    monkeypatch.setattr(catalog, "variants", lambda op_name: {REAL.name: REAL, variant.name: variant})
    monkeypatch.setitem(BUDGETS, "quick", dataclasses.replace(BUDGETS["quick"], share=1.0, thorough=True))
    asked, ready = [], []

    class Watched(CompilePool):
        def problem(self, case, planned):
            if planned.variant.launches is not None:
                task = self._tasks.get((planned.variant.key, case.key, compile_pool.config_key(planned.config)))
                asked.append(planned.config.n)
                ready.append(task is not None and task.done.done())
            return super().problem(case, planned)

    monkeypatch.setattr(runs, "compile_pool_of", lambda device, options, lanes: Watched("sm_90", 1, limits))
    fake.free.set()
    options = Options(
        ops=("linear_scan",), cases=("float32",), budget="quick", device="cpu", in_process=True, strategy=strategy
    )
    paths = runs.Paths.choose(tmp_path, HERE)
    runs.tune(options, paths, Quiet())
    tried = [r.config["n"] for r in journal.read(paths.journal) if isinstance(r, Candidate) and "n" in r.config]
    assert sorted(tried) == list(range(32)) and asked == tried
    assert set(tried) <= set(fake.asked)
    assert len(fake.asked) == len(set(fake.asked)), "compiled once each"
    print(f"{strategy}: {sum(ready)} of {len(ready)} were compiled before their turn")
    assert sum(ready) >= 0.75 * len(ready), (asked, ready, fake.asked)


def test_what_later_cases_begin_with_is_compiled_when_a_case_has_nothing_left():
    jobs = planner.make(Options(ops=("linear_scan", "rg_lru", "temporal_conv1d")), HERE)
    jobs = [next(job for job in jobs if job.op.name == name) for name in ("linear_scan", "rg_lru", "temporal_conv1d")]
    schedule = runs.Schedule(jobs, HERE, Options(), [])
    decider = runs.Decider(HERE, Options().limits(), runs.History([]), None, Quiet(), schedule)
    decider.begun.add((jobs[0].op.name, jobs[0].case.key))
    coming = list(decider.openings(jobs))
    assert {planned.variant.op for _, planned in coming} == {"rg_lru", "temporal_conv1d"}
    for job in jobs[1:]:
        mine = [planned for case, planned in coming if case == job.case]
        assert mine[0] is job.default
        assert len(mine) == len({id(planned) for planned in mine}) > 2
    opening = decider.openings(jobs)
    assert next(opening)[0] == jobs[1].case
    decider.begun.add((jobs[1].op.name, jobs[1].case.key))
    assert next(opening)[0] == jobs[2].case, "the lane of the case before it knows better by now"


def test_a_real_kernel_is_compiled_and_one_that_cannot_be_is_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    case = next(c for c in OP.cases_tagged("bench") if c.dtype == "bfloat16").plain()
    variant = catalog.variant("linear_scan/triton.sequential")
    good, bad = Planned(variant, variant.config()), Planned(variant, variant.parse_config({"block_d": 96}))
    with CompilePool("sm_90", 1, limits) as pool:
        pool.prefetch("", iter([(case, good)]))
        assert pool.problem(case, bad).status == "failed"  # no power of two
        assert pool.problem(case, good) is None


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_launch_finds_what_was_compiled_before_in_tritons_cache(target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_keys", target],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {key.rpartition("/")[0] for key in found} == {variant.key for variant in compilable()}
    assert [key for key, counts in found.items() if counts["missing"] or not counts["looked_up"]] == []


def test_nothing_is_compiled_ahead_for_a_cpu():
    assert processes_for(HERE, 1) == 0
