"""Memory of this machine, or of this container, that a run may use."""

from __future__ import annotations

from pathlib import Path

MEMORY_SHARE = 0.8
"""Of the memory that is free when a case is taken up."""


def memory_allowed() -> int:
    """A share of the memory that this machine, or this container, has free now; no limit where nothing tells."""
    free = [_meminfo("MemAvailable"), _cgroup_room()]
    known = [value for value in free if value is not None]
    return int(MEMORY_SHARE * min(known)) if known else 2**62


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _cgroup_room() -> int | None:
    """Bytes left to this control group (version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = (
            (folder / "memory.max").read_text(encoding="utf-8").strip(),
            (folder / "memory.current").read_text(encoding="utf-8").strip(),
        )
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - int(used))
