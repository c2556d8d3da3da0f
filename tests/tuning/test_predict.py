"""Tuning for a GPU that is not there: what is tried and chosen, the registry that results, the command line."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from griffin_kernels import errors, registry
from griffin_kernels.datasheet import datasheet
from tests import ROOT
from tests.launches import H100, MI300X, report, steps_of
from tuning.plan import planner
from tuning.plan.planner import Options
from tuning.predict import predictor
from tuning.predict.target_space import TargetSpace, launches_of
from tuning.predict.time_model import ASSUMED, machine
from tuning.static.recorded import StaticReport

# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans() -> list[TargetSpace]:
    """Candidate spaces of linear_scan on an H100, nothing compiled."""
    where = machine(H100)
    jobs = planner.make(Options(ops=("linear_scan",), cases=("B8-T2048-D2560-bfloat16",)), where.device)
    return [TargetSpace(job, where, ASSUMED, predictor.EstimatedCode(where)) for job in jobs]


def with_code(space: TargetSpace, **code: StaticReport | str) -> TargetSpace:
    """A copy whose candidates of the variants named (dots as underscores) are compiled to ``code``."""
    again = copy.copy(space)
    again.candidates = [dataclasses.replace(c) for c in space.candidates]
    if space.default is not None:
        again.default = again.candidates[space.candidates.index(space.default)]
    reports = {}
    for candidate in again.candidates:
        found = code.get(candidate.planned.variant.name.replace(".", "_"))
        if found is not None:
            for work in launches_of(candidate.steps):
                fits = found if isinstance(found, str) else msgspec.structs.replace(found, num_warps=work.num_warps)
                reports[work.key] = fits
    again.take_reports(reports)
    return again


def test_the_default_goes_first_and_every_variant_is_tried(scans):
    space = scans[0]
    order = space.order()
    assert order[0] is space.default
    assert {c.planned.variant.name for c in order[:5]} == {c.planned.variant.name for c in space.candidates}
    assert len(order) == len(space.candidates) == len({id(c) for c in order})


def test_guesses_learn_from_what_was_compiled():
    where = machine(H100)
    estimates = predictor.EstimatedCode(where)
    (work,) = steps_of("linear_scan/triton.sequential", "B8-T2048-D2560-bf", block_t=64, block_d=32, num_warps=1)
    before = estimates(work)
    compiled = report(kernel=work.name, target="sm_90", registers=99, loop_instructions=640, instructions=700)
    estimates.learn([msgspec.structs.replace(compiled, instructions_per_element=640 * 32 / work.tile)])
    after = estimates(work)
    assert (after.registers, after.loop_instructions, after.instructions) == (99, 640, 700) != before.registers


def test_what_spills_is_chosen_only_where_all_does(scans):
    spilling = report(spill_bytes=64)
    slow = report(loop_instructions=40_000, instructions=41_000)
    mixed = with_code(scans[0], triton_sequential=spilling, triton_chunked=slow)
    assert mixed.choose().planned.variant.name == "triton.chunked"
    assert mixed.choose().prediction.seconds > min(c.prediction.seconds for c in mixed.ranked())
    assert with_code(scans[0], triton_sequential=spilling).choose().prediction.spill_bytes == 64


def test_what_is_serialised_is_chosen_only_where_all_is(scans):
    serialised = report(warnings=("C7515: wgmma.mma_async instructions are serialized due to this",), waits=8)
    slow = report(loop_instructions=40_000, instructions=41_000)
    mixed = with_code(scans[0], triton_sequential=serialised, triton_chunked=slow)
    assert mixed.choose().planned.variant.name == "triton.chunked"
    assert "serialises its products" in predictor.reason(mixed, mixed.choose(), H100)
    alone = with_code(scans[0], triton_sequential=serialised)
    assert "serialised products" in predictor.reason(alone, alone.choose(), H100)
    assert "uncertainty none known (kernels that spill" in predictor.reason(alone, alone.choose(), H100)
    plain = with_code(scans[0], triton_sequential=report())
    assert "bound by dram; uncertainty within" in predictor.reason(plain, plain.choose(), H100)


def test_the_default_stays_where_nothing_is_clearly_faster(scans):
    same = with_code(scans[0], triton_sequential=report())
    best = same.ranked()[0].prediction.seconds
    default = same.default.prediction.seconds
    assert (same.choose() is same.default) == (default <= 1.03 * best)
    slower = with_code(scans[0], triton_sequential=report())
    slower.default.prediction = msgspec.structs.replace(slower.default.prediction, seconds=1.0)
    assert slower.choose() is not slower.default


def test_what_fails_is_dropped_with_the_reason(scans):
    failed = with_code(scans[0], triton_sequential="PTXASError: no", triton_chunked=report(shared_bytes=300_000))
    assert failed.choose() is None
    reasons = {c.reason for c in failed.candidates if c.status == "dropped"}
    assert "PTXASError: no" in reasons
    assert any("shared memory" in reason for reason in reasons)
    assert {c.status for c in failed.candidates} == {"dropped", "guessed"}


def test_predictions_for_a_search_need_no_compiler():
    real = dataclasses.replace(machine(H100).device, memory_bytes=85_029_158_912)
    options = planner.Options(ops=("linear_scan",), cases=("B1-T2048-D2560-bfloat16",))
    (job,) = planner.make(options, real)
    began = time.monotonic()
    found = predictor.expected(job, real)
    assert time.monotonic() - began < 30  # a compiler would be started for each
    space = TargetSpace(job, machine(H100), machine(H100).constants, predictor.EstimatedCode(machine(H100)))
    told = {id(c.planned): c.guessed_s for c in space.candidates if c.guessed_s < float("inf")}
    assert found == told and len(found) > 100
    for stranger in ("no GPU", datasheet("nvidia-v100-32gb-sxm2").driver_names[0]):
        assert predictor.expected(job, dataclasses.replace(real, name=stranger)) == {}


# --- the whole of it -------------------------------------------------------------------------------------------------


def test_target_writes_a_registry_that_such_a_machine_uses(tmp_path):
    told = io.StringIO()
    options = Options(ops=("temporal_conv1d_step", "temporal_conv1d"), cases=("B16-D2560", "B1-T2048"), budget="quick")
    outcome = predictor.tune_target(H100, options, tmp_path, Console(file=told, width=100), jobs=2)
    assert outcome.missing == () and len(outcome.entries) == 2
    for entry in outcome.entries:
        assert (entry.status, entry.median_s) == ("predicted", None)
        assert entry.predicted_s > 0 and "no spills" in entry.reason and H100 in entry.reason
    # a machine of the SKU reports other memory and cache sizes than the datasheet prints
    real = dataclasses.replace(
        machine(H100).device, memory_bytes=85_029_158_912, last_level_cache_bytes=52_428_800, details=(("index", 0),)
    )
    path = tmp_path / f"{real.slug}.json"
    assert outcome.registry == path
    assert registry.load_for(path, real).entries == sorted(outcome.entries, key=lambda e: e.op)
    with pytest.raises(errors.RegistryError, match="another device"):
        registry.load_for(path, machine("nvidia-h100-pcie").device)
    found = msgspec.json.decode(outcome.predictions.read_bytes(), type=predictor.PredictionsFile)
    assert found.complete and found.compiled >= 3
    for case, entry in zip(found.cases, outcome.entries, strict=True):
        assert case.candidates[case.chosen].config == entry.config
        assert {c.status for c in case.candidates} >= {"predicted", "guessed"}


def test_target_that_cannot_be_is_refused_before_any_work(tmp_path):
    console = Console(file=io.StringIO())
    with pytest.raises(errors.UnknownDevice, match="no datasheet"):
        predictor.tune_target("h100x", Options(), tmp_path, console)
    with pytest.raises(errors.ArgumentError, match="no budget 'huge'"):
        predictor.tune_target(H100, Options(budget="huge"), tmp_path, console)
    with pytest.raises(errors.ArgumentError, match="exclude each other"):
        predictor.tune_target(H100, Options(device="cpu"), tmp_path, console)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputFolderError, match="choose another folder"):
        predictor.tune_target(H100, Options(), tmp_path / "file" / "below", console)


def test_without_time_nothing_is_published_and_every_case_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "EFFORTS", {"quick": predictor.Effort(1, 0.0)})
    told = io.StringIO()
    options = Options(ops=("temporal_conv1d_step",), budget="quick")
    outcome = predictor.tune_target(H100, options, tmp_path, Console(file=told, width=200))
    assert outcome.entries == () and not outcome.registry.exists()
    assert len(outcome.missing) == 3 and all("time was up" in line for line in outcome.missing)
    assert "time is up: 0 of" in told.getvalue()


# --- command line ----------------------------------------------------------------------------------------------------


def griffin(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"XDG_DATA_HOME": str(home), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from reports.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300)


def test_predict_prints_a_table_and_json(tmp_path):
    words = ["tune", "predict", "temporal_conv1d_step", "B16-D2560", "--target", MI300X, "--most", "2", "--json"]
    done = griffin(*words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    predicted = [c for c in found if c["status"] == "predicted"]
    assert 2 <= len(predicted) < len(found)
    assert all(c["prediction"]["seconds"] > 0 for c in predicted)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tune", "predict", "linear_scan", "T2048", "--target", H100], "several cases match 'T2048'"),
        (["tune", "--target", "google-tpu-v3"], "google-tpu-v3 is no GPU"),
        (["tune", "calibrate", "none.jsonl"], "none.jsonl"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path, words, sentence):
    done = griffin(*words, home=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def compilers_of(home: Path) -> list[int]:
    """Compiling processes that were started with this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"tuning.workers.server" in (process / "cmdline").read_bytes():
                found += [int(process.name)] * (str(home).encode() in (process / "environ").read_bytes())
        except OSError:
            continue  # it has ended, or is not ours
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_an_interrupt_leaves_no_process_and_no_registry(tmp_path):
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "home"), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a background shell ignores it
        "from reports.cli import main; main()"
    )
    words = ["tune", "--target", H100, "--ops", "linear_scan", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while not compilers_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert compilers_of(tmp_path)
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 130 and b"Traceback" not in told, told
    assert compilers_of(tmp_path) == []
    assert list((tmp_path / "out").glob("*.json")) == []
