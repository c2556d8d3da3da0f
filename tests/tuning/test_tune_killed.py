"""`tune` killed or interrupted: nothing measured is lost, nothing finished is repeated, nothing is half-written."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from griffin_kernels import device, registry
from tests import ROOT
from tuning.record import journal
from tuning.record.journal_records import Candidate, End, Result
from tuning.record.paths import Paths

KILLS = int(os.environ.get("GRIFFIN_TEST_KILLS", "20"))
SEED = int(os.environ.get("GRIFFIN_TEST_SEED", "240219427"))

HERE = device.cpu()


def start(folder, *flags):
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "XDG_DATA_HOME": str(folder / "data")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.small_tune", str(folder), *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker_of(process):
    """Process number of a tuner's worker, None where it has none at this moment."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return next(
            (int(c) for c in children if b"tuning.workers.server" in Path(f"/proc/{c}/cmdline").read_bytes()), None
        )
    except OSError:
        return None


def test_kill_minus_nine_at_random_moments(tmp_path):
    """Of the tuner, or of its worker, while it runs: nothing measured is lost, nothing finished is tried again."""
    chance = random.Random(SEED)
    paths = Paths.choose(tmp_path, HERE)
    moments, before, done = [], set(), 0
    process = start(tmp_path, "--resume")
    while len(moments) < KILLS:
        # starting takes seconds: three kills in four wait for a worker, so that they land in the work that follows
        deadline, wait = time.monotonic() + 60, chance.random() < 0.75
        while wait and worker_of(process) is None and process.poll() is None:
            assert time.monotonic() < deadline, "no worker was started"
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 5.0))
        worker = worker_of(process) if chance.random() < 0.5 else None
        came_late = process.poll() is not None
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        else:
            process.kill()
            process.communicate()
        found = journal.read(paths.journal) if paths.journal.exists() else []
        if paths.registry.exists():
            registry.load_for(paths.registry, HERE)
        keys = Counter(r.key for r in found if isinstance(r, Candidate))
        assert before <= set(keys), "a finished candidate was lost"
        assert not keys or max(keys.values()) == 1, "a finished candidate was repeated"
        assert not [r.key for r in found if isinstance(r, Candidate) and r.status == "crashed"], (
            "an innocent was blamed"
        )
        if not came_late:
            moments.append(("worker" if worker is not None else "tuner", len(found)))
        before = set(keys)
        if process.poll() is not None:
            if found and isinstance(found[-1], End):
                done += 1
                before = set()
            process = start(tmp_path, "--resume")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert isinstance(journal.read(paths.journal)[-1], End)
    assert len(registry.load_for(paths.registry, HERE).entries) == 6
    assert list(tmp_path.glob("*.tmp")) == []
    assert any(count > 5 for _, count in moments), "no kill landed in the work"
    who = Counter(victim for victim, _ in moments)
    print(
        f"{KILLS} kills of what ran ({who['tuner']} tuners, {who['worker']} workers), {done} whole runs between them;"
    )
    print(f"records in the journal at each: {sorted(count for _, count in moments)}")


def started(process, paths, word, beyond=0):
    """Wait until the journal has more records of a kind than ``beyond``; returns how many."""
    deadline = time.monotonic() + 60
    while (count := paths.journal.read_bytes().count(b'"kind":"%s"' % word) if paths.journal.exists() else 0) <= beyond:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return count


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_publishes_what_is_decided_and_says_how_to_go_on(tmp_path, how):
    process = start(tmp_path)
    paths = Paths.choose(tmp_path, HERE)
    started(process, paths, b"result")
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    found = journal.read(paths.journal)
    decided = [r.entry for r in found if isinstance(r, Result)]
    assert 1 <= len(decided) < 6, "the interrupt came too late to say anything"
    said = re.search(r"interrupted: (\d) of 6 cases (?:is|are) decided and published, (\d) are left", output)
    assert said is not None and [int(count) for count in said.groups()] == [len(decided), 6 - len(decided)], output
    assert f"go on with: griffin tune --resume --out {tmp_path}" in output
    published = registry.load_for(paths.registry, HERE).entries
    assert sorted(e.date for e in published) == sorted(e.date for e in decided)
    assert {r.status for r in found if isinstance(r, Candidate)} <= {"ok", "slow", "skipped", "rejected"}
    if how == signal.SIGTERM:
        return  # a resume is the same after both, and takes long
    again = start(tmp_path, "--resume")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert len(registry.load_for(paths.registry, HERE).entries) == 6
    assert max(Counter(r.key for r in journal.read(paths.journal) if isinstance(r, Candidate)).values()) == 1


def test_second_interrupt_ends_it_at_once_and_loses_nothing_of_the_journal(tmp_path):
    """Whenever the two come: what was in the journal before stays, whole, and a resume publishes it."""
    paths = Paths.choose(tmp_path, HERE)
    chance, flags, count = random.Random(SEED), [], 0
    for _ in range(2):
        process = start(tmp_path, *flags)
        count = started(process, paths, b"candidate", count)
        before = paths.journal.read_bytes()
        process.send_signal(signal.SIGINT)
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 130, output
        assert "o on with: griffin tune --resume" in output
        assert "Traceback" not in output
        assert paths.journal.read_bytes().startswith(before.rpartition(b"\n")[0])
        journal.read(paths.journal)
        if paths.registry.exists():
            registry.load_for(paths.registry, HERE)
        flags = ["--resume"]
    assert {r.status for r in journal.read(paths.journal) if isinstance(r, Candidate)} <= {
        "ok", "slow", "skipped", "rejected",
    }  # fmt: skip
