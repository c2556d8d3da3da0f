"""Kernels that compile at their first call: called once before a CPU is timed, whatever becomes of the call."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import ClassVar

import pytest

from griffin_kernels import catalog, device, errors
from griffin_kernels.contract import NoConfig, Variant, config_dict
from tuning import run as runs
from tuning.plan import planner
from tuning.record import journal
from tuning.record.journal_records import Candidate
from tuning.static.recorded import CompileRequest
from tuning.workers import compile_farm, messages, process
from tuning.workers.messages import Compiled, Ready, Stage, Start
from tuning.workers.process import Death, Limits

HERE = device.cpu()
JOBS = planner.make(planner.Options(), HERE)
START = Start("cpu", 1)
OTHER = ("temporal_conv1d", "direct")


def none_known(job, planned):
    return False


def calls_of(groups):
    return [call for group in groups for call in group]


def nobody(request, death):
    raise AssertionError(f"{request} was said to hang: {death}")


def limits():
    return Limits(longest_s=120.0, memory_bytes=2**33)


def test_every_compiling_variant_that_can_run_is_called_once_per_case():
    able = {
        (planned.variant.key, job.case.key)
        for job in JOBS
        for planned in job.candidates
        if planned.reason is None and planned.variant.backend in ("compiled", "numba")
    }
    calls = calls_of(compile_farm.first_calls(JOBS, none_known))
    called = Counter((call.variant, call.case.key) for call in calls)
    assert set(called) == able
    assert set(called.values()) == {1}


def test_kernels_that_an_op_shares_are_compiled_by_one_process_and_the_slowest_compiler_begins():
    groups = [[catalog.variant(call.variant) for call in group] for group in compile_farm.first_calls(JOBS, none_known)]
    kinds = [{(variant.op, variant.backend) for variant in group} for group in groups]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(set.union(*kinds)) == len(groups)
    slow = [group[0].backend == "compiled" for group in groups]
    assert slow == sorted(slow, reverse=True)
    assert any(slow)


def test_the_default_configuration_is_called_where_it_fits():
    for call in calls_of(compile_farm.first_calls(JOBS, none_known)):
        variant = catalog.variant(call.variant)
        if variant.reject(call.case, HERE, variant.config()) is None:
            assert variant.parse_config(call.config) == variant.config()


def test_what_was_tried_before_is_left_out():
    first = calls_of(compile_farm.first_calls(JOBS, none_known))[0]

    def known(job, planned):
        return (planned.variant.key, job.case.plain()) == (first.variant, first.case)

    rest = calls_of(compile_farm.first_calls(JOBS, known))
    assert sorted(map(repr, [*rest, first])) == sorted(map(repr, calls_of(compile_farm.first_calls(JOBS, none_known))))
    assert compile_farm.first_calls(JOBS, lambda job, planned: True) == []


class FakeProcess:
    """Answers as ``replies`` says by variant; remembers what all of them were asked."""

    replies: ClassVar[dict] = {}
    asked: ClassVar[list] = []
    made: ClassVar[list] = []

    def __init__(self, compiles=False):
        assert not compiles
        self.killed = threading.Event()
        self.closed = False
        self.made.append(self)

    def ask(self, request, limit, memory_bytes):
        self.asked.append(request)
        usual = Ready() if isinstance(request, Start) else Compiled()
        reply = self.replies.get(getattr(request, "variant", "start"), usual)
        return reply(self) if callable(reply) else reply

    def kill(self):
        self.killed.set()

    def close(self):
        self.closed = True
        self.kill()


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeProcess, "replies", {})
    monkeypatch.setattr(FakeProcess, "asked", [])
    monkeypatch.setattr(FakeProcess, "made", [])
    monkeypatch.setattr(process, "Process", FakeProcess)
    return FakeProcess


def groups_of(*sizes):
    case = JOBS[0].case.plain()
    return [[CompileRequest(f"op/v{i}", case, {"call": n}) for n in range(size)] for i, size in enumerate(sizes)]


@pytest.mark.parametrize("processes", [1, 2, 9])
def test_a_process_that_dies_costs_the_rest_of_its_group_only(fake, processes):
    groups = groups_of(3, 2, 1)
    fake.replies["op/v0"] = Death("crashed", Stage("", 0), "died of SIGSEGV")
    fake.replies["op/v1"] = messages.Broken("ValueError: no")
    compile_farm.make_calls(groups, START, limits, nobody, processes)
    calls = [request for request in fake.asked if isinstance(request, CompileRequest)]
    assert sorted(map(repr, calls)) == sorted(map(repr, [groups[0][0], *groups[1], *groups[2]]))
    assert all(made.closed for made in fake.made)
    assert len(fake.made) <= 1 + min(processes, 3)


def test_calls_that_hang_are_reported_and_others_that_die_are_not(fake):
    groups = groups_of(1, 1, 1, 1)
    fake.replies["op/v0"] = Death("timeout", Stage("compile"), "was killed after 120 s without an answer")
    fake.replies["op/v1"] = Death("timeout", Stage(""), "its inputs took for ever")
    fake.replies["op/v2"] = Death("memory", Stage("compile"), "was killed when it held 9 GiB")
    told = []
    compile_farm.make_calls(groups, START, limits, lambda *what: told.append(what), 2)
    assert told == [(groups[0][0], fake.replies["op/v0"])]


def prepare():
    """One variant that hangs at its first call, and a second group of calls: there is something to share out."""
    everything = catalog.variants
    real = catalog.variant("linear_scan/eager.sequential")

    def hang(call, config):
        with open(os.environ["GRIFFIN_TEST_CALLS"], "a") as calls:
            calls.write("called\n")
        time.sleep(3600)

    hang.__module__ = real.run.__module__
    sleeper = Variant("linear_scan", "numba.sleeps", "", hang, NoConfig)

    def variants(op_name):
        return {real.name: real, sleeper.name: sleeper} if op_name == "linear_scan" else everything(op_name)

    catalog.variants = variants
    planner.bench_cases = lambda op, device: list(op.cases_tagged("smoke")[:1])


def test_a_candidate_that_hangs_before_its_turn_has_had_it(tmp_path, monkeypatch):
    """It is called once, named, and costs its time-out once."""

    class Notes:
        def __getattr__(self, name):
            return lambda text="", *args, **facts: notes.append(text) if name == "note" else None

    notes, calls = [], tmp_path / "calls"
    monkeypatch.setenv("GRIFFIN_TEST_CALLS", str(calls))
    monkeypatch.setattr(catalog, "variants", catalog.variants)
    monkeypatch.setattr(planner, "bench_cases", planner.bench_cases)
    prepare()
    options = planner.Options(ops=("linear_scan", OTHER[0]), budget="quick", device="cpu", timeout=8.0)
    paths = runs.Paths.choose(tmp_path, HERE)
    outcome = runs.tune(options, paths, Notes(), prepare="tests.tuning.test_precompile:prepare")
    found = [r for r in journal.read(paths.journal) if isinstance(r, Candidate) and r.variant == "numba.sleeps"]
    assert [(r.status, r.stage) for r in found] == [("timeout", "compile")]
    assert "was killed after 8 s" in found[0].problem
    assert sum(found[0].key in note for note in notes) == 1
    assert calls.read_text() == "called\n"
    assert [entry.variant for entry in outcome.entries if entry.op == "linear_scan"] == ["eager.sequential"]


def test_processes_that_cannot_begin_end_the_run_in_one_sentence(fake):
    fake.replies["start"] = messages.Broken("ImportError: no module")
    with pytest.raises(errors.WorkerError, match="cannot be made ready: ImportError: no module"):
        compile_farm.make_calls(groups_of(2, 2, 2), START, limits, nobody, 2)
    assert set(fake.asked) == {START} and len(fake.asked) <= 3
    assert all(made.closed for made in fake.made)


def test_what_still_runs_is_killed_when_the_phase_is_broken_off(fake, monkeypatch):
    def hang(fake_process):
        assert fake_process.killed.wait(60.0)
        return Death("crashed", Stage("", 0), "was killed")

    fake.replies["op/v0"] = fake.replies["op/v1"] = hang

    def second_fails(compiles):
        if fake.made:
            raise errors.WorkerError("no worker process can be started: out of processes")
        return FakeProcess()

    monkeypatch.setattr(process, "Process", second_fails)
    with pytest.raises(errors.WorkerError, match="out of processes"):
        compile_farm.make_calls(groups_of(2, 2), START, limits, nobody, 2)
    assert len(fake.made) == 1
    assert fake.made[0].closed
    assert len([request for request in fake.asked if isinstance(request, CompileRequest)]) == 1


def test_kernels_are_on_disk_afterwards(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    variants = [catalog.variant(f"{op}/numba.{name}") for op, name in (("linear_scan", "sequential"), OTHER)]
    groups = [
        [CompileRequest(v.key, catalog.op(v.op).cases_tagged("smoke")[0].plain(), config_dict(v.config()))]
        for v in variants
    ]
    compile_farm.make_calls(groups, START, limits, nobody, 2)
    kept = {path.parent.name.rpartition("_")[0] for path in tmp_path.rglob("*.nbi")}
    assert {"linear_scan", OTHER[0]} <= kept


@pytest.mark.parametrize(
    ("changes", "begun"), [({}, True), ({"in_process": True}, False), ({"ops": ("temporal_conv1d_step",)}, False)]
)
def test_a_run_begins_with_it_where_it_saves_time(tmp_path, monkeypatch, changes, begun):
    class Reached(Exception):
        pass

    class Listener:
        def __getattr__(self, name):
            return lambda *args, **facts: None

    def stop(*args):
        raise Reached

    seen = []
    monkeypatch.setattr(compile_farm, "make_calls", lambda groups, start, limits, hung: seen.append(groups))
    monkeypatch.setattr(runs.measure, "roofs", stop)
    options = planner.Options(**{"ops": ("linear_scan",), "budget": "quick", "device": "cpu", **changes})
    with pytest.raises(Reached):
        runs.tune(options, runs.Paths.choose(tmp_path, HERE), Listener())
    assert bool(seen) == begun
