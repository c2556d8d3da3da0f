"""Ceilings: arithmetic, files that cannot be trusted, sampling on tiny budgets, the command line. Nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from griffin_kernels import device, errors
from griffin_kernels.case import Cost
from griffin_kernels.datasheet import Datasheet, Source, TensorTflops
from griffin_kernels.device import Device
from reports.cli import app
from roofline import _fma, _kernels, cli, measure, probes, store
from roofline.ceilings import CEILINGS_VERSION, Ceiling, Ceilings, CeilingsFile, best_of
from roofline.probes import Probe
from tests import ROOT

HERE = device.cpu()


def ceiling(name, value, unit="flops_per_s", **facts):
    given = {"low": value, "high": value, "origin": "measured", "source": "test"}
    return Ceiling(name=name, unit=unit, value=value, **(given | facts))


TABLE = (
    ceiling("dram_copy", 1e9, "bytes_per_s"),
    ceiling("dram_read", 2e9, "bytes_per_s"),
    ceiling("cache_triad", 8e9, "bytes_per_s"),
    ceiling("matmul_float32", 4e9),
    ceiling("matmul_rows_float32_1", 1e9),
    ceiling("matmul_rows_float32_16", 16e9),
    ceiling("matmul_rows_bfloat16_4", 3e9),
    ceiling("vector_float32", 5e9),
    ceiling("special_exp", 1e8, "ops_per_s"),
    ceiling("launch", 1e-6, "s"),
)
KNOWN = Ceilings("a device", TABLE, cache_bytes=4096)


def sheet(**facts):
    given = {
        "sku": "maker-chip-1",
        "vendor": "NVIDIA",
        "name": "Chip 1",
        "driver_names": ("Chip 1",),
        "arch": "sm_90",
        "memory_gb": 80,
        "dram_gb_per_s": 3350,
        "sources": (Source(fields=("dram_gb_per_s",), title="t", date="2026-01"),),
        "tensor_tflops": TensorTflops(bfloat16=989),
    }
    return Datasheet(**(given | facts))


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(store.ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def small(monkeypatch):
    """Buffers and products so small that a measurement takes a fraction of a second."""
    monkeypatch.setitem(probes.BUFFER_BYTES, "cpu", 2**20)
    monkeypatch.setattr(probes, "WINDOW_BYTES", 2**18)
    monkeypatch.setattr(probes, "MATMUL_SIZES", {"cpu": ((32, 32, 32), (48, 32, 64))})
    monkeypatch.setattr(probes, "WEIGHT", (64, 32))
    tiny = dataclasses.replace(HERE, last_level_cache_bytes=2**16)
    monkeypatch.setattr(device, "cpu", lambda: tiny)
    return tiny


def saved(path, of=HERE, table=TABLE):
    store.save(path, of, table, {"date": "2026-01-01"})
    return path


def other_device():
    return dataclasses.replace(HERE, name="Some other CPU")


# ----- what model code divides by


def test_roof_is_the_entry_that_reaches_most():
    assert (KNOWN.value("dram"), KNOWN.roof("dram").name) == (2e9, "dram_read")
    assert KNOWN.tensor_flops_per_s == {"float32": 4e9}
    assert [KNOWN.value(name) for name in ("cache", "vector", "special", "launch")] == [8e9, 5e9, 1e8, 1e-6]
    assert KNOWN.ceiling("dram_copy").value == 1e9
    assert KNOWN.roof("tensor", "bfloat16") is None


def test_slow_divides_each_kind_of_work_by_its_ceiling():
    cost = Cost(bytes_read=3000, bytes_written=1000, tensor_flops=8000, vector_flops=500, special_ops=10)
    want = {"dram": 4000 / 2e9, "tensor": 8000 / 4e9, "vector": 500 / 5e9, "special": 10 / 1e8, "launch": 1e-6}
    assert KNOWN.slow(cost, "float32") == pytest.approx(want)
    assert KNOWN.slow(cost, "bfloat16") == pytest.approx(want), "measured ones leave out what is converted to float32"
    stated = [msgspec.structs.replace(c, origin="datasheet") for c in TABLE]
    without = {k: v for k, v in want.items() if k != "tensor"}
    assert Ceilings("a sheet", tuple(stated)).slow(cost, "bfloat16") == pytest.approx(without), "not stated, not known"
    assert KNOWN.slow(cost, "float32", launches=3)["launch"] == pytest.approx(3e-6)


@pytest.mark.parametrize(("working_set", "memory"), [(None, "dram"), (1024, "cache"), (1025, "dram"), (0, "cache")])
def test_slow_reads_the_cache_up_to_a_quarter_of_it(working_set, memory):
    seconds = KNOWN.slow(Cost(8, 8), "float32", working_set)
    assert seconds[memory] == pytest.approx(16 / {"dram": 2e9, "cache": 8e9}[memory])
    assert {"dram", "cache"} & set(seconds) == {memory}


def test_slow_leaves_out_what_is_not_known_and_not_needed():
    dram_only = Ceilings("a device", TABLE[:1], cache_bytes=4096)
    assert dram_only.slow(Cost(500, 500, 1, 1, 1), "float32", 8) == pytest.approx({"dram": 1e-6})
    assert "dram" not in KNOWN.slow(Cost(0, 0, vector_flops=5), "float32")


def test_rows_of_a_product_are_interpolated_in_log_log_and_never_extrapolated():
    assert KNOWN.matmul_rows == {"float32": {1: 1e9, 16: 16e9}, "bfloat16": {4: 3e9}}
    reached = [KNOWN.matmul_flops_per_s(rows, "float32") for rows in (1, 2, 4, 16, 1000)]
    assert reached == pytest.approx([1e9, 2e9, 4e9, 16e9, 16e9])
    assert KNOWN.matmul_flops_per_s(1, "bfloat16") == 3e9
    assert KNOWN.matmul_flops_per_s(1, "float16") is None
    assert Ceilings("no curve", TABLE[3:4]).matmul_flops_per_s(7, "float32") == 4e9


def test_datasheet_gives_what_it_states_and_an_assumed_launch():
    known = Ceilings.from_datasheet(
        sheet(fp32_tflops=67, units=132, boost_clock_mhz=1000, special_per_unit_per_clock=16)
    )
    assert known.value("dram") == pytest.approx(3.35e12)
    assert known.tensor_flops_per_s == pytest.approx({"float32": 67e12, "bfloat16": 989e12})
    assert known.value("vector") == pytest.approx(67e12)
    assert known.value("special") == pytest.approx(132 * 16 * 1e9)
    stated = [c for c in known.table if not c.name.startswith("launch")]
    assert {(c.origin, c.source) for c in stated} == {("datasheet", "datasheet maker-chip-1")}
    launch = known.roof("launch")
    assert (launch.value, launch.origin) == (5e-6, "assumed")
    assert "assumed" in launch.source


def test_a_graph_node_is_of_the_datasheet_or_assumed_and_a_tpu_launches_nothing():
    assumed = Ceilings.from_datasheet(sheet()).ceiling("launch_graph")
    assert (assumed.value, assumed.origin) == (pytest.approx(1.26e-6), "assumed") and "an H200" in assumed.source
    own = Ceilings.from_datasheet(sheet(graph_node_us=1.5)).ceiling("launch_graph")
    assert (own.value, own.origin) == (pytest.approx(1.5e-6), "datasheet") and "maker-chip-1" in own.source
    tpu = Ceilings.from_datasheet(sheet(vendor="Google", arch="tpu-v9"))
    assert tpu.value("launch") is tpu.ceiling("launch_graph") is None


def test_what_a_datasheet_lacks_is_not_known():
    known = Ceilings.from_datasheet(sheet())
    assert [known.value(name) for name in ("vector", "special", "cache")] == [None] * 3
    assert known.tensor_flops_per_s == pytest.approx({"bfloat16": 989e12})
    assert set(known.slow(Cost(8, 8, 8, 8, 8), "float16")) == {"dram", "launch"}


@pytest.mark.parametrize("wrong", [{"low": 2.0}, {"high": 0.5}, {"value": float("nan")}, {"high": float("inf")}])
def test_ceiling_outside_its_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="low <= value <= high"):
        ceiling("x", **({"value": 1.0} | wrong))


# ----- files


def test_saved_ceilings_are_found_again(tmp_path):
    path = saved(store.default_path(HERE))
    assert path.is_relative_to(tmp_path / "data")
    found = store.load_for(HERE)
    assert (found.device, found.table, found.cache_bytes) == (HERE.name, TABLE, HERE.last_level_cache_bytes)
    assert store.load(path).device.provenance == {"date": "2026-01-01"}
    assert [p.name for p in path.parent.iterdir() if p.suffix not in (".json", ".lock")] == []


def test_named_file_comes_before_the_users(tmp_path, monkeypatch):
    saved(store.default_path(HERE))
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(saved(tmp_path / "named.json", table=TABLE[:1])))
    assert store.load_for(HERE).table == TABLE[:1]


def test_no_file_means_not_known(monkeypatch):
    monkeypatch.setattr(store, "shipped_path", lambda of: Path("nowhere.json"))
    assert store.load_for(HERE) is None


BROKEN = {
    "truncated": (lambda text: text[: len(text) // 2].encode(), "not a valid ceilings file"),
    "empty": (lambda text: b"", "not a valid ceilings file"),
    "binary": (lambda text: b"\xff\xfe\x00", "not a valid ceilings file"),
    "of a later version": (
        lambda text: text.replace(f'"schema_version": {CEILINGS_VERSION}', '"schema_version": 9').encode(),
        "schema version 9",
    ),
    "of another device": (
        lambda text: text.replace(HERE.name, "Some other CPU").encode(),
        f"of another device .Some other CPU, .*this is {re.escape(HERE.name)}",
    ),
    "negative": (lambda text: text.replace('"low": 1000000000.0', '"low": -1.0').encode(), "not a valid"),
    "with an unknown field": (lambda text: text.replace('"source"', '"sauce"').encode(), "not a valid"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_unusable_file_is_an_error_where_named_a_warning_elsewhere_and_stays(how, monkeypatch):
    spoil, message = BROKEN[how]
    path = saved(store.default_path(HERE))
    path.write_bytes(raw := spoil(path.read_text()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert store.load_for(HERE) is None
    assert [w.category for w in seen] == [errors.CeilingsWarning]
    assert str(path) in str(seen[0].message)
    monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(path))
    with pytest.raises(errors.CeilingsError, match=message):
        store.load_for(HERE)
    with pytest.raises(errors.CeilingsError, match=message):
        saved(path)
    assert path.read_bytes() == raw


def test_missing_and_folder_are_named(tmp_path, monkeypatch):
    for path, message in ((tmp_path / "none.json", "cannot be read"), (tmp_path, "is a directory")):
        monkeypatch.setenv(store.ENVIRONMENT_VARIABLE, str(path))
        with pytest.raises(errors.CeilingsError, match=message):
            store.load_for(HERE)


def test_full_disk_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = saved(tmp_path / "c.json")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.OutputFolderError, match="No space left"):
        saved(path, table=TABLE[:1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


# ----- measuring


def test_every_ceiling_is_finite_and_inside_its_interval(small):
    shares = []
    found = {c.name: c for c in measure.measure(small, lambda what, share: shares.append(share), seconds=0.05)}
    expected = {"dram_copy", "dram_triad", "dram_read", "cache_triad", "matmul_float32", "vector_float32", "launch"}
    assert expected | {"special_exp"} <= set(found)
    assert {f"matmul_rows_float32_{rows}" for rows in probes.MATMUL_ROWS} <= set(found)
    for c in found.values():
        assert 0 < c.low <= c.value <= c.high < float("inf"), c.name
        assert (c.origin, c.unit == "s") == ("measured", c.name.startswith("launch"))
        assert c.samples
        assert c.source
    assert shares == sorted(shares)
    assert shares[0] == 0 and shares[-1] <= 1


def test_amounts_are_those_of_what_is_run(small):
    made = list(probes.everything(small))
    amounts = {p.name: p.amount for p in made if not p.name.startswith("matmul")}
    window = probes.WINDOW_BYTES
    assert {amounts["dram_copy"], amounts["dram_triad"], amounts["dram_read"]} == {2 * window, 3 * window, window}
    assert amounts["cache_triad"] == small.last_level_cache_bytes // 4 // 12 * 12
    products = {p.name: [q.amount for q in made if q.name == p.name] for p in made}
    assert products["matmul_float32"] == [2 * 32**3, 2 * 48 * 32 * 64]
    assert products["matmul_rows_float32_16"] == [2 * 16 * 64 * 32]


def test_unknown_cache_has_no_ceiling(small):
    assert list(probes.cache(dataclasses.replace(small, last_level_cache_bytes=0))) == []


def test_multiply_add_chains_compute_what_they_claim():
    call, flops = _fma.chains(HERE)
    # every chain x -> x / 2 + 1 / 4 ends at 1 / 2, in every lane
    assert call() == pytest.approx(_fma.CHAINS * _fma.lanes(HERE) / 2)
    assert flops == 2 * _fma.CHAINS * _fma.lanes(HERE) * _fma.STEPS * torch.get_num_threads()


@pytest.mark.parametrize(("arch", "lanes"), [("x86-64-avx512", 16), ("x86-64-avx2", 8), ("aarch64-asimd", 4)])
def test_lanes_follow_the_vector_extension(arch, lanes):
    assert _fma.lanes(Device("cpu", "x", arch, 1, 0, 0)) == lanes


def rate(unit="ops_per_s"):
    return Probe("x", unit, 1, lambda: None, "test")


def test_estimate_is_a_high_quantile_of_what_nothing_disturbed():
    calm = [(float(v), True) for v in range(1, 12)]
    found = measure.estimate(rate(), [*calm, *[(1e-3, False)] * 50])
    assert found.value == pytest.approx(np.quantile(range(1, 12), measure.QUANTILE))
    assert len(found.samples) == 11
    assert not found.source.endswith(measure.DISTURBED)
    times = measure.estimate(rate("s"), calm)
    assert times.value == pytest.approx(np.quantile(range(1, 12), 1 - measure.QUANTILE))


def test_estimate_from_disturbed_samples_says_so():
    found = measure.estimate(rate(), [(1.0, True), *[(0.5, False)] * 9])
    assert len(found.samples) == 10
    assert found.name == "x" and found.source.endswith(measure.DISTURBED)
    assert not measure.estimate(rate(), [(1.0, True)] * 3).source.endswith(measure.DISTURBED)


def test_probes_short_of_undisturbed_samples_go_on_and_come_to_an_end(monkeypatch):
    def visit(probe, of):
        time.sleep(1e-3)
        return [(1.0, probe.name == "calm")]

    monkeypatch.setattr(measure, "_visit", visit)
    made = [dataclasses.replace(rate(), name=name) for name in ("calm", "busy")]
    sampler = measure.Sampler(HERE, made)
    sampler.sample(0.05, measure.LONGEST)
    calm, busy = sampler.found
    assert len(calm) >= measure.LEAST_UNDISTURBED
    assert len(busy) > len(calm)


KERNELS = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from roofline import _kernels as k

def code(kernel, constants, target, kind, **types):
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    constexprs = {(names.index(n),): v for n, v in constants.items()}
    return triton.compile(ASTSource(kernel, signature, constexprs), target=target).asm[kind]

size = {"BLOCK": k.BLOCK}
both = size | {"LINKS": k.LINKS}
for target, kind in ((GPUTarget("cuda", 90, 32), "ptx"), (GPUTarget("hip", "gfx942", 64), "amdgcn")):
    fma = code(k.fma_chain, both, target, kind, out="*fp32", factor="fp32", term="fp32", steps="i32")
    exp = code(k.exp_chain, both, target, kind, out="*fp32", steps="i32")
    streams = {"out": "*fp32", "left": "*fp32", "right": "*fp32"}
    triad = code(k.cache_triad, size, target, kind, **streams, factor="fp32", steps="i32")
    words = ("fma.rn", "ex2.approx", "ld.global.cg") if kind == "ptx" else ("v_pk_fma_f32", "v_exp_f32", "global_load")
    print(*(text.count(word) for text, word in zip((fma, exp, triad), words)))
"""


def test_gpu_kernels_compile_to_the_instructions_they_measure():
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    nvidia, amd = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    in_one_pass = _kernels.BLOCK * _kernels.LINKS
    # 4 warps of 32 threads, or of 64, which multiply and add in pairs
    assert nvidia[:2] == (in_one_pass // 128, in_one_pass // 128)
    assert amd[:2] == (in_one_pass // 256 // 2, in_one_pass // 256)
    assert min(nvidia[2], amd[2]) >= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is chosen before Triton is imported")
def test_gpu_kernels_compute_what_they_claim():
    out, left, right = (torch.rand(4 * 16) for _ in range(3))
    _kernels.cache_triad[(4,)](out, left, right, 0.5, 4, BLOCK=16)
    torch.testing.assert_close(out, left + 0.5 * right)
    _kernels.fma_chain[(4,)](out, 0.5, 0.25, 20, LINKS=2, BLOCK=16)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))
    _kernels.exp_chain[(4,)](out, 20, LINKS=2, BLOCK=16)
    torch.testing.assert_close(out, torch.full_like(out, 0.6411857))


# ----- command line


def run(*words):
    return CliRunner().invoke(app, ["roofline", "measure", "--device", "cpu", "--seconds", "0.02", *map(str, words)])


def test_command_writes_the_file_and_prints_json(small, tmp_path):
    path = tmp_path / "new" / "c.json"
    done = run("--out", path, "--json", "--repeat", 2)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    file = store.load_of(path, small)
    assert answer["path"] == str(path)
    assert [row["name"] for row in answer["ceilings"]] == [c.name for c in file.ceilings]
    for row, c in zip(answer["ceilings"], file.ceilings, strict=True):
        assert (row["value"], row["low"], row["high"]) == (c.value, c.low, c.high)
        assert len(row["runs"]) == 2
        assert row["spread"] == pytest.approx(max(row["runs"]) / min(row["runs"]) - 1)
    assert file.device.provenance["torch"] == torch.__version__


def test_command_shows_the_datasheet_and_labels_what_is_above_it(small, tmp_path, monkeypatch):
    peaks = sheet(dram_gb_per_s=1e-6, fp32_tflops=1e9)
    monkeypatch.setattr("griffin_kernels.datasheet.find", lambda name: peaks if name == small.name else None)
    done = run("--out", tmp_path / "c.json")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "1 kB/s" in lines["dram_copy"] and "above the datasheet" in lines["dram_copy"]
    assert "1e+06 PFLOP/s" in lines["vector_float32"] and "0%" in lines["vector_float32"]
    assert "above" not in lines["vector_float32"]
    assert "no peak known" in lines["special_exp"]


@pytest.mark.parametrize("raw", [b"half a fi", None], ids=["broken", "other device"])
def test_command_refuses_what_is_in_the_way_before_it_measures(tmp_path, monkeypatch, raw):
    path = saved(tmp_path / "c.json", of=other_device())
    if raw is not None:
        path.write_bytes(raw)
    before = path.read_bytes()
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured first"))
    done = run("--out", path)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert str(path) in done.stderr
    assert path.read_bytes() == before


def test_command_names_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--out", tmp_path / "file" / "c.json")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "choose another file with --out" in done.stderr


@pytest.mark.parametrize("when", ["in the first run", "in the second run"])
def test_interrupted_command_leaves_the_old_file(tmp_path, monkeypatch, when):
    path = saved(tmp_path / "c.json")
    before = path.read_bytes()
    answers = iter([] if "first" in when else [list(TABLE[:1])])

    def interrupted(*_):
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupted)
    done = run("--out", path, "--repeat", 2)
    assert (done.exit_code, done.stderr) == (130, "interrupted; nothing was written\n")
    assert path.read_bytes() == before


def test_busy_machine_is_mentioned(tmp_path, monkeypatch):
    slow = ceiling("dram_copy", 1.0, "bytes_per_s", source="test" + measure.DISTURBED)
    monkeypatch.setattr(measure, "measure", lambda *_: [slow])
    done = run("--out", tmp_path / "c.json")
    assert done.exit_code == 0
    assert "dram_copy are too low" in done.stderr


def test_spread_is_of_the_largest_over_the_smallest():
    assert cli.spread([2.0, 1.0, 1.5]) == 1.0


def test_reading_ceilings_and_the_command_line_need_no_heavy_module():
    heavy = "torch triton numba pandas plotly jinja2".split()
    code = (
        f"import sys, roofline.ceilings, roofline.store, reports.cli; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_file_holds_only_what_its_record_says():
    raw = msgspec.json.encode(store.load(saved(store.default_path(HERE))))
    assert set(json.loads(raw)) == set(CeilingsFile.__struct_fields__)


def test_the_best_that_was_reached_stands_until_the_software_changes(tmp_path):
    path, facts = tmp_path / "c.json", {"torch": "2.13", "date": "monday"}
    rate, delay = ceiling("dram_copy", 5.0, "bytes_per_s"), ceiling("launch", 2.0, "s")
    store.save(path, HERE, [rate, delay], facts)
    copy, exp = ceiling("dram_copy", 3.0, "bytes_per_s"), ceiling("special_exp", 1.0, "ops_per_s")
    slower = [copy, ceiling("launch", 1.0, "s"), exp]
    kept = {c.name: c for c in store.save(path, HERE, slower, facts | {"date": "tuesday"})}
    assert [kept[name].value for name in ("dram_copy", "launch", "special_exp")] == [5.0, 1.0, 1.0]
    assert kept["dram_copy"].source.endswith("an earlier measurement reached this")
    assert store.load(path).ceilings == list(kept.values())
    # said once, however often it stands
    again = store.save(path, HERE, slower, facts)
    assert again[0].source.count("an earlier") == 1
    other = store.save(path, HERE, slower, facts | {"torch": "2.14"})
    assert [c.value for c in other] == [3.0, 1.0, 1.0]
    store.save(path, HERE, [rate], facts)
    assert store.save(path, HERE, slower[:1], facts, fresh=True) == slower[:1]


def test_an_earlier_best_keeps_its_interval_and_the_samples_are_those_of_now():
    old = Ceiling(name="x", unit="s", value=1, low=0.9, high=1.1, origin="measured", source="old", samples=[1.0])
    new = Ceiling(name="x", unit="s", value=3, low=2.0, high=4.0, origin="measured", source="new", samples=[3.0, 4.0])
    (kept,) = best_of([old], [new])
    assert (kept.value, kept.low, kept.high, kept.usual) == (1, 0.9, 1.1, 3.5)
