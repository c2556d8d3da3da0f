"""``griffin roofline`` as a user types it, the wrong ways too."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import warnings

import msgspec
import pytest
from typer.testing import CliRunner

from griffin_kernels import datasheet, errors
from griffin_kernels import device as devices
from griffin_kernels.models import PRESETS
from griffin_kernels.ops.local_attention.unfused import BLOCK, after, reached
from reports.cli import app
from roofline import store, study_records
from roofline.ceilings import Ceiling
from roofline.console import plain_errors
from roofline.forward import analyse
from roofline.target import of_sku
from tests import ROOT

CEILINGS = {
    "dram_copy": ("bytes_per_s", 2e10),
    "cache_triad": ("bytes_per_s", 1e11),
    "matmul_float32": ("flops_per_s", 1e11),
    "matmul_rows_float32_1": ("flops_per_s", 1e10),
    "matmul_rows_float32_64": ("flops_per_s", 8e10),
    "vector_float32": ("flops_per_s", 5e10),
    "special_exp": ("ops_per_s", 1e9),
    "launch": ("s", 2e-6),
}

pytestmark = pytest.mark.filterwarnings("ignore::griffin_kernels.errors.UntunedWarning")


def run(*words, code=0):
    done = CliRunner().invoke(app, ["roofline", *map(str, words)])
    assert done.exit_code == code, done.output
    return done


def h100(*words, code=0, model="griffin-1b3"):
    return run("forward", "--model", model, "--device", "nvidia-h100-sxm", *words, code=code)


@pytest.fixture
def measured_here(tmp_path, monkeypatch):
    """Ceilings of this machine's CPU, as if they had been measured."""
    device = devices.cpu()
    path = tmp_path / "ceilings.json"
    table = [Ceiling.stated(name, unit, value, "measured", "test") for name, (unit, value) in CEILINGS.items()]
    store.save(path, device, table, {})
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(path))
    monkeypatch.setattr("griffin_kernels.device.detect", lambda name=None: device)
    return path


def test_a_pass_in_a_table():
    text = h100("--phase", "decode", "--batch", 1, "--seq", 2048, "--dtype", "bf16").output
    for words in ("griffin-1b3, decode after 2048 tokens", "recurrent", "local attention", "mlp", "head", "total"):
        assert words in text
    assert "the device has 80.00 GB" in text and "nothing was measured" in text


def test_layers_one_by_one():
    lines = h100("--layers").output.splitlines()
    assert sum(line.startswith(("recurrent", "local attention", "mlp")) for line in lines) == 2 * 24


def test_json_and_csv_say_the_same():
    record = json.loads(h100("--json").stdout)
    rows = list(csv.DictReader(io.StringIO(h100("--csv").stdout)))
    assert len(rows) == len(record["parts"]) == 2 * 24 + 2
    assert sum(float(row["predicted_s"]) for row in rows) == pytest.approx(record["predicted_s"])
    assert record["model"] == "griffin-1b3" and record["dtype"] == "bfloat16" and record["fits"] is True


def test_sweeps():
    both = json.loads(h100("--sweep", "batch,seq", "--batches", "1,64", "--seqs", "128,4096", "--json").stdout)
    assert [(p["batch"], p["seq"]) for p in both] == [(1, 128), (1, 4096), (64, 128), (64, 4096)]
    alone = json.loads(h100("--sweep", "batch", "--batches", "1,64", "--seq", 4096, "--json").stdout)
    assert alone == [point for point in both if point["seq"] == 4096]
    table = h100("--sweep", "batch,seq", "--phase", "decode").output
    assert "bound by:" in table and "131072" in table
    assert (
        "does not fit"
        in run("forward", "--model", "griffin-14b", "--device", "nvidia-t4", "--dtype", "fp16", "--sweep", "seq").output
    )


def test_list_names_everything():
    text = run("list").output
    assert all(name in text for name in (*PRESETS, *datasheet.skus()))


def test_what_does_not_fit_says_how_much_it_needs():
    text = run("forward", "--model", "griffin-14b", "--device", "nvidia-t4", "--dtype", "fp16").output
    assert "needs 30." in text and "the device has 16.00 GB: it does not fit" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "grifin-1b3"], "did you mean griffin-1b3"),
        (["--device", "h100"], "near ones are"),
        (["--seq", 0], "seq is 0, expected at least 1"),
        (["--batch", 0], "batch is 0, expected at least 1"),
        (["--phase", "training"], "expected prefill, decode or train"),
        (["--phase", "train", "--recompute", "all"], "recompute is 'all', expected none, blocks, selective"),
        (["--phase", "train", "--optimizer", "sgd"], "optimizer is 'sgd', expected adamw or adamw-master"),
        (["--recompute", "blocks"], "recompute is 'blocks', but prefill has none: it goes with phase train"),
        (["--dtype", "int8"], "expected float32, bfloat16 or float16"),
        (["--device", "nvidia-v100-16gb-sxm2"], "no known matrix peak in bfloat16"),
        (["--sweep", "time"], "expected batch, seq or batch,seq"),
        (["--sweep", "batch", "--batches", "1,x"], "--batches is 'x', expected a whole number"),
        (["--sweep", "seq", "--seqs", "1,0"], "--seqs is 0"),
        (["--measure"], "--measure runs on this machine"),
        (["--json", "--csv"], "exclude each other"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    done = h100(*words, code=2)
    assert sentence in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_this_machine_without_ceilings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = run("forward", "--model", "hawk-100m", "--device", "cpu", code=2)
    assert "griffin roofline measure" in done.stderr


def test_ceilings_of_another_device_are_refused(measured_here, monkeypatch):
    text = measured_here.read_text().replace('"units": ', '"units": 9')
    measured_here.write_text(text)
    done = run("forward", "--model", "hawk-100m", "--device", "cpu", code=2)
    assert "of another device" in done.stderr and measured_here.read_text() == text


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
@pytest.mark.parametrize("model", ["hawk-tiny", "griffin-tiny", "mqa-tiny"])
def test_measured_beside_predicted(measured_here, model, phase):
    words = ("forward", "--model", model, "--phase", phase, "--batch", 2, "--seq", 40, "--measure", "--seconds", 0)
    record = json.loads(run(*words, "--json").stdout)
    assert record["dtype"] == "float32"
    measured = record["measured"]
    assert measured["interval_s"][0] <= measured["median_s"] <= measured["interval_s"][1]
    assert [part["measured_s"] for part in record["parts"]] == measured["parts_s"]
    assert all(value > 0 for value in measured["parts_s"])
    assert "the prediction is off by" in run(*words).output


def test_this_machine_beside_others(measured_here):
    words = ("forward", "--model", "hawk-tiny", "--device", "cpu,nvidia-l4", "--request", "64+8", "--weights", "int8")
    here, other = json.loads(run(*words, "--json").stdout)
    assert (here["dtype"], other["dtype"]) == ("float32", "bfloat16") and here["device"] == devices.cpu().slug
    assert here["seconds"] > 0 and other["fits"]
    assert "float32" in run(*words).output


def test_a_pass_that_does_not_fit_is_not_run(measured_here):
    done = run("forward", "--model", "griffin-14b", "--batch", 4096, "--measure", code=2)
    assert "does not fit" in done.stderr and "the largest batch that does is" in done.stderr


def test_study_is_recorded(measured_here, tmp_path, monkeypatch):
    from roofline import study

    small = study.Plan(("hawk-tiny", "mqa-tiny"), "float32", (("prefill", 1, 20), ("decode", 2, 20)), (1, 2), (16, 64))
    monkeypatch.setattr(study, "CPU_PLAN", small)
    monkeypatch.setattr(study, "Timing", functools.partial(study.Timing, ceilings=0.1, between=0.0))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "deep" / "roofline.json"
    done = run("study", "--out", path, "--seconds", 0)
    found = study_records.read(path)
    here, predicted = found.pages
    assert here.measured and [row.model for row in here.passes] == ["hawk-tiny"] * 2 + ["mqa-tiny"] * 2
    assert all(row.measured is not None and row.error is not None for row in here.passes)
    assert not predicted.measured and all(row.measured is None for row in predicted.passes)
    assert len(here.grid) == 2 * 2 * 2 * 2
    assert store.load(store.default_path(devices.cpu())).ceilings == found.ceilings
    assert "tuned kernels by time lost" in done.output and "what fusing saves" in done.output
    assert "hawk-tiny" in done.output and str(path) in done.output.replace("\n", "")


def test_a_recorded_study_reads_and_is_written_alike():
    """The file is of version 1 as first released; what was added since is at its default."""
    path = ROOT / "tests" / "data" / "study.json"
    found, golden = study_records.read(path), json.loads(path.read_text())
    again = json.loads(study_records.encode(found))
    added = {"mode": "eager", "eager_s": None}
    for old, new in zip(golden["pages"], again["pages"], strict=True):
        for record in (*old["passes"], *old["grid"]):
            record |= added
        for record in old["passes"]:
            record["tuned"] = {}
        assert new == old
    for kernel in golden["kernels"]:
        kernel["above"] = None
    assert again == golden and golden["schema_version"] == 1
    made = analyse("griffin-tiny", of_sku("nvidia-h100-sxm"), phase="prefill", batch=1, seq=20, dtype="float32").record
    (page,) = golden["pages"]
    assert msgspec.to_builtins(made).keys() == page["passes"][0].keys()
    assert msgspec.to_builtins(made.point).keys() == page["grid"][0].keys()
    assert msgspec.to_builtins(made.parts)[0].keys() == page["passes"][0]["parts"][0].keys()


def test_a_broken_study_is_one_sentence(tmp_path):
    for text, words in (("{", "not a roofline study"), ('{"schema_version": 99}', "schema version 99")):
        path = tmp_path / "roofline.json"
        path.write_text(text)
        with pytest.raises(errors.ReportError, match=words):
            study_records.read(path)
    with pytest.raises(errors.ReportError, match="cannot be read"):
        study_records.read(tmp_path / "none.json")


def test_the_command_imports_neither_torch_nor_triton():
    code = (
        "import sys; from reports.cli import app\n"
        "sys.argv = 'griffin roofline forward --model griffin-14b --device amd-mi300x --phase decode'.split()\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'triton', 'numba', 'pandas', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_warning_is_one_line(capsys):
    with plain_errors():
        warnings.simplefilter("always")
        warnings.warn("rg_lru is not tuned near here", errors.UntunedWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: rg_lru is not tuned near here\n"


@pytest.mark.parametrize("option", ["--batch", "--seq"])
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_sizes_of_any_magnitude_are_answered_at_once(option, phase):
    """Work is counted in closed form, whatever the length; past the limit one sentence says so."""
    assert json.loads(h100(option, 2**40, "--phase", phase, "--json").output)["predicted_s"] > 0
    for wrong, words in (
        (2**40 + 1, "at most 1099511627776"),
        (10**40, "at most"),
        (0, "at least 1"),
        (-3, "at least 1"),
    ):
        done = h100(option, wrong, "--phase", phase, code=2)
        assert f"{option[2:]} is {wrong}, expected {words}" in done.output
    done = h100("--sweep", "seq", "--seqs", f"128,{10**30}", code=2)
    assert "expected at most" in done.output


@pytest.mark.parametrize("command", [("forward", "--model", "griffin-tiny"), ("study",), ("measure",)])
def test_time_that_never_ends_is_refused(command):
    assert "--seconds is inf" in run(*command, "--seconds", "inf", code=2).output


def test_keys_within_reach_of_blocks_as_counted_one_by_one():
    for time, past, window in itertools.product(
        (1, 63, 64, 65, 300), (0, 1, 64, 500), (1, 63, 64, 65, 129, 400, 10**6)
    ):
        counted = sum(
            min(start + BLOCK, time) + past - max(0, start + past - window + 1) for start in range(0, time, BLOCK)
        )
        assert reached(time, past, window) == counted


def test_keys_after_blocks_as_counted_one_by_one():
    for time, right in itertools.product((1, 63, 64, 65, 129, 300), (0, 1, 63, 64, 65, 200, 10**6)):
        counted = sum(min(right, time - min(start + BLOCK, time)) for start in range(0, time, BLOCK))
        assert after(time, right) == counted
