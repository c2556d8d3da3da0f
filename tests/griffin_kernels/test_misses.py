"""Untuned cases written down by many processes, and read back as a plan."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import warnings

import pytest
import torch

import griffin_kernels
from griffin_kernels import catalog, device, dispatch, errors, misses
from griffin_kernels.case import Case
from griffin_kernels.misses import Miss
from griffin_kernels.ops.linear_scan.cost import make_case
from tuning.plan import from_misses, planner
from tuning.plan.planner import Options

HERE = device.cpu()
pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    dispatch.refresh()
    yield
    dispatch.refresh()


@pytest.fixture
def path(monkeypatch, tmp_path):
    file = tmp_path / "misses.jsonl"
    monkeypatch.setenv(misses.ENVIRONMENT_VARIABLE, str(file))
    return file


def scan(time, width=8):
    x = torch.zeros(1, time, width)
    return griffin_kernels.linear_scan(x, x)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def miss(time, **facts):
    return Miss(**({"op": "linear_scan", "case": make_case(1, time, 64).plain(), "device": HERE.slug} | facts))


def written(path, *found):
    for one in found:
        misses.append(str(path), one)
    return path


def test_each_missed_case_is_recorded_once(path):
    for time in (5, 9, 5):
        scan(time)
        dispatch.refresh()
    assert [(m["op"], m["case"]["dims"]["T"], m["device"]) for m in lines(path)] == [
        ("linear_scan", 5, HERE.slug), ("linear_scan", 9, HERE.slug),
    ]  # fmt: skip


def test_backward_pass_is_recorded_too(path):
    x = torch.zeros(1, 6, 4, requires_grad=True)
    griffin_kernels.linear_scan(x, x)[0].sum().backward()
    assert [m["op"] for m in lines(path)] == ["linear_scan", "linear_scan_bwd"]


def test_chosen_kernels_and_runs_without_the_variable_record_nothing(path, monkeypatch):
    with griffin_kernels.use(variant="linear_scan/eager.sequential"):
        scan(7)
    monkeypatch.delenv(misses.ENVIRONMENT_VARIABLE)
    scan(8)
    assert not path.exists()


@pytest.mark.parametrize("where", ["folder", "nowhere/file", "full", "pipe"])
def test_file_that_cannot_be_written_gives_one_warning_and_the_answer(tmp_path, monkeypatch, where):
    target = tmp_path / where
    if where == "folder":
        target.mkdir()
    elif where == "pipe":
        os.mkfifo(target)
    elif where == "full":
        monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    monkeypatch.setenv(misses.ENVIRONMENT_VARIABLE, str(target))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", errors.MissWarning)
        for time in (3, 4):
            assert scan(time)[0].shape == (1, time, 8)
    found = [str(w.message) for w in seen if w.category is errors.MissWarning]
    assert len(found) == 1 and str(target) in found[0]


def append_many(path, worker):
    for index in range(50):
        misses.append(path, miss(1 + 100 * worker + index))


def test_lines_of_many_processes_stay_whole(path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.griffin_kernels.test_misses"])
    workers = [context.Process(target=append_many, args=(str(path), i)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(m["case"]["dims"]["T"] for m in lines(path)) == sorted(
        1 + 100 * worker + index for worker in range(8) for index in range(50)
    )


def test_recorded_call_becomes_a_job_of_its_own(path):
    scan(300, 48)
    misses, notes = from_misses.chosen(path, HERE)
    assert notes == []
    (job,) = planner.make(Options(device="cpu", misses=misses), HERE)
    assert (job.op.name, job.case.key, job.default is not None) == ("linear_scan", "B1-T300-D48-float32", True)
    made = job.op.make_inputs(job.case, torch.device("cpu"), 0)
    assert job.op.case_of(job.op.call(**made)).key == job.case.key


def test_every_op_can_make_what_a_call_of_it_records():
    for op in catalog.ops().values():
        for case in op.cases_tagged("smoke", "edge"):
            called = op.case_of(op.call(**op.make_inputs(case, torch.device("cpu"), 0)))
            recorded = Miss(op=op.name, case=called.plain(), device=HERE.slug)
            assert from_misses.unmakeable(recorded) is None, (op.name, case.key)


def test_sizes_within_a_factor_of_two_are_tuned_once_at_the_most_frequent(path):
    written(path, miss(100), miss(150), miss(150), miss(190), miss(400))
    misses, notes = from_misses.chosen(path, HERE)
    assert [m.case.dims["T"] for m in misses] == [150, 400]
    assert "2 of linear_scan, left out: within a factor of 2" in notes[0]


BAD = {
    "torn": ('{"op":"linear_scan","ca', "not a recorded miss"),
    "no op": (miss(10, op="linear_scam"), "no op 'linear_scam'"),
    "dims": (miss(10, case=Case({"B": 1, "T": 2}, "float32")), "expected a size of at least 1 for each of B, T"),
    "negative": (miss(10, case=Case({"B": 1, "T": -2, "D": 1, "N": 1}, "float32")), "at least 1"),
    "dtype": (miss(10, case=make_case(1, 10, 64, "float8").plain()), "no dtype float8; there are float32"),
    "flag": (miss(10, case=make_case(1, 10, 64, flags=["twice"]).plain()), "no flag twice; linear_scan has"),
    "too large": (miss(2**50), "GiB are free"),
    "contradiction": (
        miss(10, op="rg_lru", case=Case({"B": 1, "T": 10, "D": 7, "H": 2, "n": 3, "N": 1}, "float32")), "inputs"
    ),
    "elsewhere": (miss(10, device="nvidia-h100-80gb-hbm3"), "1 of nvidia-h100-80gb-hbm3, left out: this device is"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_line_that_cannot_be_tuned_is_named_and_the_others_are_used(path, kind):
    bad, said = BAD[kind]
    written(path, miss(500))
    with open(path, "ab") as file:
        file.write(bad.encode() + b"\n" if isinstance(bad, str) else b"")
    if not isinstance(bad, str):
        written(path, bad)
    misses, notes = from_misses.chosen(path, HERE)
    assert [m.case.dims["T"] for m in misses] == [500]
    (note,) = notes
    assert said in note and (kind == "elsewhere" or "line 2" in note)


@pytest.mark.parametrize("content", ["", "{}\n", "hello\n\xff"], ids=["empty", "no miss", "binary"])
def test_file_without_a_case_for_this_device_is_one_sentence(path, content):
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(errors.ArgumentError, match="holds no case to tune here"):
        from_misses.chosen(path, HERE)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(errors.JournalError, match="cannot be read"):
        from_misses.chosen(tmp_path / "none", HERE)
    with pytest.raises(errors.JournalError, match="is not a file"):
        from_misses.chosen(tmp_path, HERE)


def test_options_with_misses_survive_the_journal(path):
    import msgspec

    options = Options(device="cpu", misses=from_misses.chosen(written(path, miss(100)), HERE)[0])
    stored = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(options)))
    assert msgspec.convert(stored, Options) == options
    assert dataclasses.replace(options, misses=()) == Options(device="cpu")


def test_command_plans_the_recorded_cases_alone(path):
    from typer.testing import CliRunner

    from reports.cli import app

    written(path, miss(100), miss(5, op="nothing"))
    done = CliRunner().invoke(app, ["tune", "--from-misses", str(path), "--dry-run", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "B1-T100-D64-float32" in done.stdout and "1 cases," in done.stdout
    assert "no op 'nothing'" in done.stderr
    done = CliRunner().invoke(app, ["tune", "--from-misses", str(path), "--dry-run", "--ops", "rg_lru"])
    assert done.exit_code == 2 and "none of these ops" in done.stderr
