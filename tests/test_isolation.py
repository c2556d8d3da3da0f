"""Candidates that crash, hang, lie or eat the machine: each is named, costs itself only, and never wins."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from griffin_kernels import catalog, device, errors
from griffin_kernels.records import CaseRecord
from tests import hostile
from tests.hostile import CASE, HOSTILE, OP
from tuning.ahead import Ahead
from tuning.budget import BUDGETS
from tuning.isolation import Isolated, Worker
from tuning.limits import Limits
from tuning.messages import Load, Ready, Stage, Start

QUICK = BUDGETS["quick"]
GIB = 2**30


class Told:
    """What a listener was told."""

    def __init__(self):
        self.texts = []

    def __call__(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def isolated():
    told = Told()
    # 10 s is the least that limits give a stage, so this is the shortest that a hang can take
    found = Isolated("cpu", 1, Limits(longest_s=6.0, memory_bytes=3 * GIB // 2), told, prepare="tests.hostile:prepare")
    found.load(OP, CaseRecord.of(CASE), [])
    found.told = told
    yield found
    found.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_candidate_is_named_and_the_next_one_runs(isolated, name):
    wanted = HOSTILE[name]
    began = time.monotonic()
    answer = isolated.attempt(f"{OP}/eager.{name}", {}, QUICK, None, patient=True)
    assert (answer.status, wanted.words in (answer.problem or "")) == (wanted.status, True), answer
    if wanted.status == "timeout":
        assert time.monotonic() - began < 3 * 6.0 + 30.0  # a new process and the case's reference come on top
    if wanted.status not in ("ok",):
        assert answer.samples_s == []
    after = isolated.attempt(f"{OP}/eager.sequential", {}, QUICK, None, patient=True)
    assert (after.status, after.problem) == ("ok", None)


def test_orphan_of_a_candidate_dies_with_its_worker(isolated):
    before = _sleepers()
    isolated.attempt(f"{OP}/eager.orphans", {}, QUICK, None, patient=True)
    deadline = time.monotonic() + 10
    while (left := _sleepers() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _sleepers():
    """Processes of this test run's workers."""
    return {p for p in os.listdir("/proc") if p.isdigit() and b"tuning.worker" in _command(p)}


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_worker_that_somebody_else_kills_costs_no_candidate(isolated):
    isolated.attempt(f"{OP}/eager.sequential", {}, QUICK, None, patient=True)
    os.kill(isolated._worker._process.pid, signal.SIGKILL)
    answer = isolated.attempt(f"{OP}/eager.sequential", {}, QUICK, None, patient=True)
    assert answer.status == "ok"


def test_worker_dies_with_its_parent(tmp_path):
    import subprocess
    import sys

    code = (
        "import os, time\n"
        "from tuning.isolation import Worker\n"
        "worker = Worker()\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    while b"tuning.worker" not in _command(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists() and b"tuning.worker" in _command(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"tuning.worker" not in _command(child)


def test_worker_that_cannot_start_is_one_sentence():
    found = Isolated("cpu", 1, Limits(5.0, 3 * GIB), prepare="tests.no_such_module:prepare")
    found.load(OP, CaseRecord.of(CASE), [])
    with pytest.raises(errors.WorkerError, match="cannot be made ready.*no_such_module"):
        found.attempt(f"{OP}/eager.sequential", {}, QUICK, None, patient=True)
    found.close()


def test_limits_are_learned_and_bounded():
    limits = Limits(longest_s=60.0, memory_bytes=1)
    limits.begin(QUICK)
    assert limits.seconds(Stage("compile")) == 60.0
    for _ in range(5):
        assert limits.seconds(Stage("check", seconds=0.1)) == 10.0
    assert limits.seconds(Stage("compile")) == 30.0  # the floor: four times 0.1 s would punish a busy machine
    for _ in range(20):
        limits.seconds(Stage("check", seconds=14.0))
    assert limits.seconds(Stage("compile")) == 56.0
    assert limits.seconds(Stage("time", seconds=100.0)) == 60.0


def test_a_plain_worker_loads_a_case():
    worker = Worker()
    try:
        for request in (Start("cpu", 1), Load(OP, CaseRecord.of(CASE), [])):
            assert worker.ask(request, lambda stage: 60.0, 4 * GIB) == Ready()
    finally:
        worker.close()
    assert worker._process.poll() is not None


def test_triton_candidates_are_compiled_ahead(monkeypatch):
    from tuning.plan import Job, Planned

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    op = catalog.op(OP)
    case = next(c for c in op.cases_tagged("bench") if c.dtype == "bfloat16")
    variant = catalog.variant(f"{OP}/triton.sequential")
    good, bad = Planned(variant, variant.config()), Planned(variant, variant.parse_config({"block_d": 96}))
    with Ahead("sm_90", 1, lambda: Limits(120.0, 8 * GIB)) as ahead:
        ahead.submit(Job(op, case, (good, bad), good))
        assert ahead.problem(case, bad).status == "failed"  # no power of two
        assert ahead.problem(case, good) is None
        assert ahead.problem(case, Planned(catalog.variant(f"{OP}/eager.loop"), None)) is None


def test_nothing_is_compiled_ahead_for_a_cpu():
    from tuning.ahead import processes_for

    assert processes_for(device.cpu(), 1) == 0
    assert hostile.CASE.dtype == "float32"
