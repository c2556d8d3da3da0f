"""Candidates that crash, hang, lie or eat the machine: each is named, costs itself only, and never wins."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

import pytest

from griffin_kernels import catalog, device, errors
from tests import hostile
from tests.hostile import CASE, HOSTILE, OP
from tuning.plan import planner
from tuning.plan.budget import BUDGETS
from tuning.plan.planner import Options
from tuning.record import journal
from tuning.record.journal_records import Candidate
from tuning.record.paths import Paths
from tuning.run import tune
from tuning.workers import messages, process
from tuning.workers.messages import Load, Ready, Stage, Start, Try
from tuning.workers.process import IsolatedExecutor, Limits

LIMIT_S = 6.0
"""What a stage may take here: a hang costs so much."""

QUICK = BUDGETS["quick"]
SEQUENTIAL = Try(f"{OP}/eager.sequential", {}, QUICK, None, patient=True)
GIB = 2**30


class Told:
    """What a listener was told."""

    def __init__(self):
        self.texts = []

    def __call__(self, text):
        self.texts.append(text)


class Listener:
    """Hands on what is said of workers."""

    def __init__(self, told):
        self.worker = told

    def __getattr__(self, name):
        return lambda *args, **facts: None


@pytest.fixture(scope="module")
def isolated():
    limits = Limits(longest_s=LIMIT_S, memory_bytes=3 * GIB // 2)
    found = IsolatedExecutor(limits, [Start("cpu", 1, "tests.hostile:prepare")])
    found.load(Load(OP, CASE.plain(), []))
    yield found
    found.close()


def test_tune_survives_them_all(tmp_path, monkeypatch):
    """Each is named for what it did, no time or figure of it is used, and the right candidate wins."""
    monkeypatch.setattr(catalog, "variants", catalog.variants)
    monkeypatch.setattr(planner, "bench_cases", planner.bench_cases)
    hostile.prepare()
    options = Options(ops=(OP,), budget="thorough", device="cpu", timeout=LIMIT_S, memory_gib=1.5)
    paths = Paths.choose(tmp_path, device.cpu())
    told = Told()
    began = time.monotonic()
    outcome = tune(options, paths, Listener(told), prepare="tests.hostile:prepare")
    took = time.monotonic() - began
    records = [r for r in journal.read(paths.journal) if isinstance(r, Candidate)]
    found = {r.variant.removeprefix("eager."): r for r in records}
    assert set(found) == {"sequential", "loop", *HOSTILE}
    for name, wanted in HOSTILE.items():
        record = found[name]
        assert (record.status, wanted.words in (record.problem or "")) == (wanted.status, True), record
        assert bool(record.samples_s) == (wanted.status == "ok")
    [entry] = outcome.entries
    assert entry.variant in ("eager.sequential", "eager.chatters") and found["sequential"].status == "ok"
    lost = sum(wanted.status in ("crashed", "timeout", "memory", "wrong") for wanted in HOSTILE.values())
    # "kills" gets a second process, and a third
    assert lost <= sum("the worker is replaced" in text for text in told.texts) <= lost + 2
    # beyond their timeouts there is a new process for each; a loaded machine takes seconds to start one
    assert took < sum(wanted.status == "timeout" for wanted in HOSTILE.values()) * LIMIT_S + (lost + 4) * 20.0
    print(f"{len(HOSTILE)} hostile candidates, {lost} processes lost, {took:.1f} s")


def test_orphan_of_a_candidate_dies_with_its_worker(isolated):
    before = _sleepers()
    isolated.attempt(Try(f"{OP}/eager.orphans", {}, QUICK, None, patient=True))
    deadline = time.monotonic() + 10
    while (left := _sleepers() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _sleepers():
    """Processes of this test run's workers."""
    return {p for p in os.listdir("/proc") if p.isdigit() and b"tuning.workers.server" in _command(p)}


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_worker_that_somebody_else_kills_costs_no_candidate(isolated, how):
    isolated.attempt(SEQUENTIAL)
    os.kill(isolated._process._process.pid, how)
    answer = isolated.attempt(SEQUENTIAL)
    assert answer.status == "ok"


@pytest.mark.parametrize(
    ("stages", "status", "asked"),
    [
        (["", "", "", "", ""], "ok", 6),
        (["compile", "", "time"], "ok", 4),
        (["compile", "", "time", "check"], "crashed", 4),
        ([""] * 20, "crashed", process.PROCESSES),
    ],
    ids=["before its work", "twice in its work", "three times in its work", "again and again"],
)
def test_candidate_is_blamed_for_three_kills_in_its_own_work(monkeypatch, stages, status, asked):
    """stages: what the worker had said when somebody killed it, time after time."""
    deaths, tries = iter(stages), []

    class Killed:
        def __init__(self, compiles):
            pass

        def ask(self, request, limit, memory_bytes):
            if not isinstance(request, messages.Try):
                return messages.Ready()
            tries.append(request)
            stage = next(deaths, None)
            if stage is None:
                return messages.Tried("ok", "", None, [], [1.0])
            return process.Death("crashed", messages.Stage(stage), "its process was killed", foreign=True)

        def close(self):
            pass

        kill = close

    monkeypatch.setattr(process, "Process", Killed)
    with contextlib.closing(IsolatedExecutor(Limits(), [Start("cpu", 1)])) as executor:
        assert executor.attempt(SEQUENTIAL).status == status
    assert len(tries) == asked


def test_worker_dies_with_its_parent(tmp_path):
    import subprocess
    import sys

    code = (
        "import os, time\n"
        "from tuning.workers.process import Process\n"
        "worker = Process()\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    while b"tuning.workers.server" not in _command(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while (
        Path(f"/proc/{child}").exists() and b"tuning.workers.server" in _command(child) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert b"tuning.workers.server" not in _command(child)


def test_worker_that_cannot_start_is_one_sentence():
    found = IsolatedExecutor(Limits(5.0, 3 * GIB), [Start("cpu", 1, "tests.no_such_module:prepare")])
    found.load(Load(OP, CASE.plain(), []))
    with pytest.raises(errors.WorkerError, match=r"cannot be made ready.*no_such_module"):
        found.attempt(SEQUENTIAL)
    found.close()


def test_limits_are_learned_and_bounded():
    limits = Limits(longest_s=60.0, memory_bytes=1)
    seconds = functools.partial(limits.seconds, SEQUENTIAL)
    assert seconds(Stage("compile")) == 60.0
    for _ in range(5):
        assert seconds(Stage("check", seconds=0.1)) == 10.0
    assert seconds(Stage("compile")) == 30.0  # the floor: four times 0.1 s would punish a busy machine
    for _ in range(20):
        seconds(Stage("check", seconds=14.0))
    assert seconds(Stage("compile")) == 56.0
    assert seconds(Stage("time", seconds=100.0)) == 60.0


def test_a_plain_worker_loads_a_case():
    worker = process.Process()
    try:
        for request in (Start("cpu", 1), Load(OP, CASE.plain(), [])):
            assert worker.ask(request, lambda stage: 60.0, 4 * GIB) == Ready()
    finally:
        worker.close()
    assert worker._process.poll() is not None
