"""What may be wrong with a device's registries, and with the journal of its last run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import filelock

from griffin_kernels import catalog, errors, registry
from griffin_kernels.device import Device
from tuning.doctor import Finding
from tuning.plan import planner
from tuning.publish import show
from tuning.record import journal


def registries(device: Device) -> Iterator[Finding]:
    """Every registry that dispatch consults on a device."""
    found = registry.sources(device)
    if not found:
        text = f"{device.name} is not tuned: default kernels are used"
        yield Finding("problem", "registry", text, "griffin tune")
        return
    covered: set[str] = set()
    for path in found:
        try:
            file = registry.load_for(path, device)
        except errors.RegistryError as error:
            fix = "move the file away" if os.path.exists(path) else "correct or unset GRIFFIN_KERNELS_REGISTRY"
            yield Finding("problem", "registry", f"{error}; it is not used", fix)
            continue
        shown = show.entries(file, device)
        covered |= {row.entry.op for row in shown if row.state != "unused"}
        counts = Counter(row.state for row in shown)
        if not shown:
            yield Finding("note", "registry", f"{path} is empty", "griffin tune")
        elif len(shown) > counts["unused"]:
            yield Finding("ok", "registry", f"{path}: {show.counted(shown)}")
        for state, level, words in (
            ("unused", "problem", "cannot be used"),
            ("stale", "note", "are stale: used, but measured with something else"),
            ("predicted", "note", "were predicted and never ran here"),
        ):
            rows = [row for row in shown if row.state == state]
            if rows:
                ops = ",".join(dict.fromkeys(row.entry.op for row in rows if row.entry.op in catalog.ops()))
                reasons = "; ".join(reason for reason, _ in Counter(row.why for row in rows).most_common(2))
                fix = f"griffin tune --ops {ops}" if ops else "griffin tune"
                yield Finding(level, "registry", f"{len(rows)} entries of {path} {words} ({reasons})", fix)  # type: ignore[arg-type]
    missing = [op.name for op in catalog.ops().values() if op.name not in covered and planner.bench_cases(op, device)]
    if missing:
        text = f"no entry for {', '.join(missing)}: default kernels are used"
        yield Finding("note", "registry", text, f"griffin tune --ops {','.join(missing)}")


def unfinished(path: Path) -> Iterator[Finding]:
    """The journal of the last run: readable, and finished."""
    if not os.path.exists(path):
        return
    try:
        records = journal.read(path)
    except errors.JournalError as error:
        yield Finding("problem", "journal", str(error), f"move {path} away")
        return
    if journal.unfinished(records):
        run = journal.first_run(records)
        began = f", begun {run.date}" if run else ""
        text = f"{path}: a run that was not finished{began}; nothing of it is published"
        yield Finding("note", "journal", text, "griffin tune --resume goes on with it")
    else:
        yield Finding("ok", "journal", f"{path}: the last run was finished")


def lock(path: Path) -> Iterator[Finding]:
    """Whether another process holds the lock beside a file, and which."""
    name = f"{path}.lock"
    if not os.path.exists(name):
        return
    probe = filelock.FileLock(name)
    try:
        probe.acquire(timeout=0)
    except filelock.Timeout:
        pid = holder(name)
        who = f"process {pid} ({_command(pid)})" if pid else "another process"
        fix = "wait for it; a lock ends with its process, so there is no file to remove"
        yield Finding("problem", "lock", f"{who} holds {name}: it is tuning or publishing", fix)
    except NotImplementedError:
        text = f"{name} cannot be locked: its file system has no locks, so nothing can be tuned or published there"
        yield Finding("problem", "lock", text, "griffin tune --out FOLDER, with a folder on a local disk")
    except OSError:
        return  # a file that cannot be opened for locking is reported with its folder
    else:
        probe.release()


def holder(name: str) -> int | None:
    """The process that holds a lock on a file, from /proc/locks; None where that cannot be told."""
    try:
        inode = os.stat(name).st_ino
        rows = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF
    found = [int(row[4]) for row in rows if len(row) > 5 and row[5].endswith(f":{inode}") and row[4].isdigit()]
    return found[0] if found else None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "of another container or user"
