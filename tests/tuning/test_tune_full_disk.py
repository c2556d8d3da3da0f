"""A disk that fills up, a home that cannot be written, a clock that jumps back: one sentence, nothing half-written."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from griffin_kernels import device, registry
from tests import ROOT
from tests import small_tune as small
from tuning import run
from tuning.record import journal
from tuning.record.journal_records import Candidate, End
from tuning.record.paths import Paths

HERE = device.cpu()


class Stopping:
    """A listener that interrupts the run after so many candidates."""

    def __init__(self, after):
        self.left = after

    def candidate(self, record, lane=""):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def __getattr__(self, name):
        return lambda *args, **facts: None


def small_tune(folder, *flags, before=None):
    return command("tests.small_tune", str(folder), *flags, before=before, XDG_DATA_HOME=str(folder / "data"))


def command(module, *words, before=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=before,
        check=False,
    )


def test_full_disk_stops_a_run_with_a_sentence_and_it_goes_on_later(tmp_path):
    """No file may grow past a quota: writes fail as on a disk that is full."""

    def quota():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    done = small_tune(tmp_path, before=quota)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, text
    assert "cannot be written: File too large" in text and "griffin tune --resume" in text
    paths = Paths.choose(tmp_path, HERE)
    found = [r for r in journal.read(paths.journal) if isinstance(r, Candidate)]
    assert found and not paths.registry.exists()
    assert list(tmp_path.glob(".*.tmp")) == []
    again = small_tune(tmp_path, "--resume")
    assert again.returncode == 0, again.stderr
    records = journal.read(paths.journal)
    keys = [r.key for r in records if isinstance(r, Candidate)]
    assert isinstance(records[-1], End) and len(keys) == len(set(keys)) and {r.key for r in found} <= set(keys)
    assert len(registry.load_for(paths.registry, HERE).entries) == 6


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def bound_by_permissions():
    """Even root may write only what permissions allow, in what this process becomes. Others are bound as it is."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) == 0, os.strerror(
            ctypes.get_errno()
        )


@pytest.fixture
def locked(tmp_path):
    """A home folder that nobody may write."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    yield home
    home.chmod(0o755)


def test_home_that_cannot_be_written_is_named_before_any_work_and_out_helps(tmp_path, locked):
    places = {"HOME": str(locked), "XDG_DATA_HOME": "", "XDG_CACHE_HOME": ""}
    done = command("reports", "tune", "--device", "cpu", before=bound_by_permissions, **places)
    text = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert text.startswith(f"error: results cannot be written to {locked}") and text.endswith("with --out"), text
    assert "Permission denied" in text and list(locked.iterdir()) == []
    out = tmp_path / "out"
    done = command("tests.small_tune", str(out), before=bound_by_permissions, **places)
    assert done.returncode == 0, done.stderr
    assert len(registry.load_for(Paths.choose(out, HERE).registry, HERE).entries) == 6
    assert list(locked.iterdir()) == []


def test_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
    """Order in the journal is order of writing, times are of a clock that cannot jump."""
    moments = iter([f"20{year:02d}-01-01T00:00:00+00:00" for year in range(40, 0, -1)])
    monkeypatch.setattr(run, "now", lambda: next(moments))
    monkeypatch.setattr("time.time", lambda: 0.0)
    small.shrink(monkeypatch.setattr)
    paths = Paths.choose(tmp_path, HERE)
    assert run.tune(small.OPTIONS, paths, Stopping(9)).interrupted
    outcome = run.tune(small.OPTIONS, paths, Stopping(10**9), resume=True)
    again = run.tune(small.OPTIONS, paths, Stopping(10**9))
    assert len(outcome.entries) == len(again.entries) == 6
    assert 0 < outcome.seconds < 300 and 0 < again.seconds < 300
    stored = registry.load_for(paths.registry, HERE).entries
    # what was published last counts, not what has the latest date
    assert {e.samples_digest for e in stored} == {e.samples_digest for e in again.entries}
    assert len(list(tmp_path.glob("journal-*.jsonl"))) == 1
