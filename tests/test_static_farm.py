"""Compilers that misbehave cost the launch that they were at, and nothing else."""

from __future__ import annotations

import subprocess
import time

import pytest

from griffin_kernels.case import Case
from tuning.workers import compile_farm
from tuning.workers.compile_farm import LaunchRequest

BAD = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    what = request["config"]["what"]
    if what == "hang": time.sleep(600)
    if what == "abort": os.abort()
    if what == "leave": sys.exit(3)
    print(json.dumps({"reason": what}), flush=True)
"""


@pytest.fixture
def bad_compiler(tmp_path, monkeypatch):
    (tmp_path / "bad_compiler.py").write_text(BAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compile_farm, "SERVER", "bad_compiler")


def request(what: str) -> LaunchRequest:
    return LaunchRequest("op/variant", Case({}, "float32"), {"what": what}, 0, "sm_90")


def test_compilers_that_crash_hang_or_leave_cost_their_launch_only(bad_compiler):
    asked = ["one", "abort", "two", "hang", "three", "leave", "four"]
    found = dict(compile_farm.compile_all([(what, request(what)) for what in asked], jobs=1, timeout=3.0))
    assert found == {
        "one": "one",
        "abort": "the compiler's process died (SIGABRT)",
        "two": "two",
        "hang": "the compiler took more than 3 s",
        "three": "three",
        "leave": "the compiler's process died (3)",
        "four": "four",
    }


def test_what_is_compiled_when_time_is_up_counts_as_not_begun(bad_compiler, monkeypatch):
    monkeypatch.setattr(compile_farm, "GRACE_S", 0.5)
    asked = [(what, request(what)) for what in ("one", "hang", "two")]
    began = time.monotonic()
    assert dict(compile_farm.compile_all(asked, jobs=1, seconds=2.0)) == {"one": "one"}
    assert time.monotonic() - began < 60


def test_closing_leaves_no_compiler_behind(bad_compiler, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(compile_farm.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    results = compile_farm.compile_all([("one", request("one")), ("hang", request("hang"))], jobs=2, timeout=60.0)
    assert next(results) == ("one", "one")
    results.close()
    assert started and all(process.poll() is not None for process in started)
