"""Compilers that misbehave cost the launch that they were at, and nothing else."""

from __future__ import annotations

import time

import pytest

from griffin_kernels.case import Case
from tuning.static.recorded import CompileRequest
from tuning.workers import compile_farm, process


@pytest.fixture
def bad_compiler(monkeypatch):
    monkeypatch.setattr(process, "SERVER", "tests.bad_compiler")


def request(what: str) -> CompileRequest:
    return CompileRequest("op/variant", Case({}, "float32"), {"what": what}, "sm_90", 0)


def test_compilers_that_crash_hang_or_leave_cost_their_launch_only(bad_compiler):
    asked = ["one", "abort", "two", "hang", "three", "leave", "four"]
    found = dict(compile_farm.compile_all([(what, request(what)) for what in asked], jobs=1, timeout=3.0))
    assert found == {
        "one": "one",
        "abort": "its process died of SIGABRT",
        "two": "two",
        "hang": "was killed after 3 s without an answer",
        "three": "three",
        "leave": "ended its process with status 3 and without an answer",
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
    popen = process.subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    results = compile_farm.compile_all([("one", request("one")), ("hang", request("hang"))], jobs=2, timeout=60.0)
    assert next(results) == ("one", "one")
    results.close()
    assert started and all(child.poll() is not None for child in started)
