"""``griffin tune doctor``: every trouble is named in words, with what to do about it."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings

import filelock
import pytest
import torch
from typer.testing import CliRunner

from griffin_kernels import catalog, device, dispatch, misses, registry, validity
from griffin_kernels.ops.linear_scan.cost import make_case
from griffin_kernels.records import Entry
from reports.cli import app
from tuning.doctor import examine, machine, registries
from tuning.record.journal_records import JOURNAL_VERSION

pytestmark = pytest.mark.unit

HERE = device.cpu()


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in [name for name in os.environ if name.startswith("GRIFFIN_")]:
        monkeypatch.delenv(name)
    dispatch.refresh()
    yield tmp_path / "data"
    dispatch.refresh()


def entry(**facts):
    found = catalog.variant("linear_scan/eager.sequential")
    given = {
        "op": "linear_scan", "case": make_case(1, 64, 32).plain(), "variant": found.name, "config": {},
        "status": "measured", "source_hash": found.source_hash, "date": "2026-01-01", "reason": "", "candidates": 1,
    }  # fmt: skip
    return Entry(**(given | facts))


def publish(*entries, **provenance):
    path = registry.default_path(HERE)
    registry.publish(path, HERE, entries, device.provenance(HERE) | provenance)
    return path


def found(findings, level=None):
    return [f"{f.what} -> {f.fix}" for f in findings if level in (None, f.level)]


# installation


def test_this_installation_is_sound():
    assert found(machine.versions(), "problem") == []
    assert found(machine.backends()) == []


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.10.1+cu130", "torch is 2.10.1+cu130, supported is >=2.11 -> pip install --upgrade 'torch>=2.11'"),
        ("triton", "3.5.9", "triton is 3.5.9, supported is >=3.6"),
        ("numba", None, "numba is not installed -> pip install 'numba>=0.61'"),
    ],
)
def test_library_that_is_too_old_or_absent_is_named(monkeypatch, name, version, said):
    real = machine.metadata.version

    def told(asked):
        if asked != name:
            return real(asked)
        if version is None:
            raise machine.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(machine.metadata, "version", told)
    (problem,) = found(machine.versions(), "problem")
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("version", "bound", "meets"),
    [
        ("2.11", ">=2.11", True), ("2.9.9", ">=2.11", False), ("2.13.0+cpu", ">=2.11", True), ("3.13.2", "<3.14", True),
        ("3.14.0", "<3.14", False), ("3.10.4", ">=3.11", False), ("2.11.0rc1", ">=2.11", True), ("1.0", "", True),
    ],
)  # fmt: skip
def test_bounds_of_versions(version, bound, meets):
    assert machine._meets(version, bound) is meets


def test_backend_that_does_not_import_is_named(monkeypatch):
    real = machine.importlib.import_module

    def broken(name):
        if name == "triton":
            raise OSError("libtriton.so: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(machine.importlib, "import_module", broken)
    (problem,) = found(machine.backends(), "problem")
    assert "importing triton fails: OSError: libtriton.so" in problem


def test_absent_compiler_and_cache_without_a_place_are_notes(monkeypatch):
    from numba.core import caching

    from griffin_kernels.ops import _compiled

    monkeypatch.setattr(_compiled, "problem", lambda device: "torch.compile needs a C++ compiler")
    assert machine.compiler().level == "note"

    def nowhere(*_):
        raise RuntimeError("cannot cache function 'f': no locator available for file 'x.py'")

    monkeypatch.setattr(caching, "FunctionCache", nowhere)
    (note,) = found(machine.numba_cache(), "note")
    assert "compiled anew in every process" in note and "NUMBA_CACHE_DIR" in note


def test_variables_that_point_nowhere_or_are_misspelt(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIFFIN_KERNELS_REGISTRY", str(tmp_path / "none.json"))
    monkeypatch.setenv("GRIFFIN_KERNELS_REGISTERY", "x")
    monkeypatch.setenv(misses.ENVIRONMENT_VARIABLE, str(tmp_path / "no" / "misses"))
    monkeypatch.setenv("GRIFFIN_KERNELS_CEILINGS", str(tmp_path))
    problems = found(machine.variables(), "problem")
    assert len(problems) == 2
    assert any("none.json points to nothing" in text for text in problems)
    assert any("misses cannot be written" in text for text in problems)
    assert "nothing reads GRIFFIN_KERNELS_REGISTERY" in found(machine.variables(), "note")[0]


# machine


def gpus(monkeypatch, card, build, visible=None):
    there = {"NVIDIA": "/proc/driver/nvidia/version", "AMD": "/dev/kfd"}.get(card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.os.path, "exists", lambda path: path == there)
    monkeypatch.setattr(torch.version, "cuda", "13.0" if build == "NVIDIA" else None)
    monkeypatch.setattr(torch.version, "hip", "7.0" if build == "AMD" else None)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (finding,) = machine.gpu()
    return finding


@pytest.mark.parametrize(
    ("card", "build", "visible", "level", "said"),
    [
        (None, "", None, "ok", "this machine has none"),
        ("NVIDIA", "", None, "problem", "built for the CPU only"),
        ("AMD", "NVIDIA", None, "problem", "is built for NVIDIA"),
        ("NVIDIA", "NVIDIA", "", "note", "CUDA_VISIBLE_DEVICES= hides the NVIDIA GPU"),
        ("NVIDIA", "NVIDIA", None, "problem", "but torch sees no GPU"),
    ],
)
def test_gpu_that_is_not_used_has_a_reason(monkeypatch, card, build, visible, level, said):
    finding = gpus(monkeypatch, card, build, visible)
    assert finding.level == level and said in finding.what
    assert finding.level == "ok" or finding.fix


@pytest.mark.parametrize(
    ("threads", "quota", "level", "said"),
    [
        (HERE.units, None, "ok", "cores"),
        (HERE.units + 3, None, "problem", f"torch uses {HERE.units + 3} threads on {HERE.units} cores"),
        (HERE.units, 0.5, "problem", "this container may use 0.5 cores' time"),
        (0, None, "note", "torch uses 0 threads"),
    ],
)
def test_threads_are_held_against_cores_and_quota(monkeypatch, threads, quota, level, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    (finding,) = machine.cores()
    assert finding.level == level and said in finding.what


def test_quota_is_read_from_the_control_group(monkeypatch):
    texts = {"/sys/fs/cgroup/cpu.max": "150000 100000\n"}

    def read(path, encoding):
        assert encoding == "utf-8"
        if str(path) not in texts:
            raise FileNotFoundError(str(path))
        return texts[str(path)]

    monkeypatch.setattr(machine.Path, "read_text", read)
    assert machine.cpu_quota() == 1.5
    texts["/sys/fs/cgroup/cpu.max"] = "max 100000\n"
    assert machine.cpu_quota() is None
    texts.clear()
    assert machine.cpu_quota() is None
    texts |= {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert machine.cpu_quota() == 0.5


def test_busy_machine_full_disk_and_read_only_home_are_told(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    assert found(machine.load(), "note")[0].startswith("9.0 processes wanted a core")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    assert "make room" in found(machine.folder(), "problem")[0]

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "cannot be written: Read-only file system" in found(machine.folder(), "problem")[0]


# registry, journal and locks


def registry_findings(level):
    return found(registries.registries(HERE), level)


def test_registry_that_is_missing_broken_or_of_another_device_is_a_problem(monkeypatch, tmp_path):
    assert registry_findings("problem") == [f"{HERE.name} is not tuned: default kernels are used -> griffin tune"]
    path = publish(entry())
    assert registry_findings("problem") == []
    path.write_text(path.read_text().replace(HERE.name, "Some other CPU"))
    assert "of another device (Some other CPU" in registry_findings("problem")[0]
    path.write_text("half a fi")
    assert (
        "is not a valid registry" in registry_findings("problem")[0]
        and "move the file away" in registry_findings("problem")[0]
    )
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path / "none.json"))
    assert any("correct or unset GRIFFIN_KERNELS_REGISTRY" in text for text in registry_findings("problem"))


def test_entries_that_are_stale_changed_or_predicted_are_counted(monkeypatch):
    sizes = [make_case(1, 64 * i, 32).plain() for i in (1, 2, 3, 4)]
    publish(
        entry(case=sizes[0]), entry(case=sizes[1], source_hash="0" * 16), entry(case=sizes[2], status="predicted"),
        entry(case=sizes[3], op="linear_scum"), torch="1.0",
    )  # fmt: skip
    (problem,) = registry_findings("problem")
    assert (
        problem.startswith("2 entries of ")
        and "cannot be used (" in problem
        and "has changed since it was measured" in problem
    )
    notes = registry_findings("note")
    assert "1 stale, 1 predicted, 2 unused" in registry_findings("ok")[0]
    assert any("are stale: used" in text and "griffin tune --ops linear_scan" in text for text in notes)
    assert any("were predicted and never ran here" in text for text in notes)
    assert any("no entry for" in text and "rg_lru" in text for text in notes)


RUN = {
    "kind": "run", "journal_version": JOURNAL_VERSION, "run_id": "x", "date": "2026-01-01", "command": "griffin tune",
    "device": {"validity": {}, "provenance": {}}, "options": {}, "planned": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        ([RUN], "note", "griffin tune --resume goes on with it"),
        ([RUN, {"kind": "end", "date": "", "registry": "", "seconds": 1.0}], "ok", "the last run was finished"),
        ([{"kind": "nonsense"}, RUN], "problem", "line 1 is broken"),
    ],
    ids=["unfinished", "finished", "broken"],
)
def test_journal_is_read(tmp_path, lines, level, said):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (finding,) = registries.unfinished(path)
    assert finding.level == level and said in f"{finding.what} {finding.fix}"


def hold(path, ready, done):
    with filelock.FileLock(path):
        ready.set()
        done.wait()


@pytest.mark.process
def test_process_that_holds_a_lock_is_reported_while_it_does(tmp_path):
    path = tmp_path / "registry.json"
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    ready, done = context.Event(), context.Event()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only sleeps on a lock
        process = context.Process(target=hold, args=(f"{path}.lock", ready, done))
        process.start()
    try:
        ready.wait()
        (problem,) = found(registries.lock(path), "problem")
        assert f"holds {path}.lock: it is tuning or publishing" in problem
        if os.path.exists("/proc/locks"):
            assert f"process {process.pid} (" in problem
    finally:
        done.set()
        process.join()
    assert found(registries.lock(path)) == []


def test_file_system_without_locks_is_a_problem(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError

    (tmp_path / "registry.json.lock").write_text("")
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    (problem,) = found(registries.lock(tmp_path / "registry.json"), "problem")
    assert "has no locks" in problem


def test_holder_is_read_from_the_kernels_table_of_locks(tmp_path, monkeypatch):
    file = tmp_path / "x.lock"
    file.write_text("")
    inode = os.stat(file).st_ino
    text = f"1: POSIX  ADVISORY  WRITE 11 08:01:1 0 EOF\n2: FLOCK  ADVISORY  WRITE 4321 00:2d:{inode} 0 EOF\n"
    monkeypatch.setattr(registries.Path, "read_text", lambda path, encoding: text)
    assert registries.holder(str(file)) == 4321


# the command


def command(*words):
    return CliRunner().invoke(app, ["tune", "doctor", "--device", "cpu", *words])


def test_command_leaves_with_1_and_the_fix_where_there_is_a_problem():
    done = command()
    assert done.exit_code == 1, done.output
    assert "is not tuned: default kernels are used" in done.stdout and "-> griffin tune" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].endswith(("1 problem", "problems"))


def test_command_leaves_with_0_where_nothing_is_wrong(monkeypatch):
    publish(entry())
    monkeypatch.setattr(validity, "_here", lambda device: {})
    for check in ("gpu", "cores", "load", "folder"):
        monkeypatch.setattr(machine, check, lambda: iter(()))
    done = command("--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["problems"] == 0
    assert {"level", "area", "what", "fix"} == set(answer["findings"][0])


def test_command_changes_nothing_and_names_a_device_that_is_not_there(data):
    before = sorted(data.rglob("*"))
    command()
    assert sorted(data.rglob("*")) == before
    done = CliRunner().invoke(app, ["tune", "doctor", "--device", "tpu"])
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1


def test_every_finding_but_the_good_ones_says_what_to_do(monkeypatch):
    publish(entry(source_hash="0"), torch="1.0")
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    for finding in examine("cpu"):
        assert finding.what and "\n" not in finding.what
        assert finding.level == "ok" or finding.fix, finding
