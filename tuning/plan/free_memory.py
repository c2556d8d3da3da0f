"""Memory of this machine, or of this container, that a run may use."""

from __future__ import annotations

from pathlib import Path

MEMORY_SHARE = 0.8
"""Of the memory that is free when a case is taken up."""


def memory_allowed() -> int:
    """A share of the memory that this machine, or this container, has free now; no limit where nothing tells."""
    known = [value for value in (_available(), _cgroup_room()) if value is not None]
    return int(MEMORY_SHARE * min(known)) if known else 2**62


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_room() -> int | None:
    """Bytes left to this control group (version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = ((folder / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - int(used))
