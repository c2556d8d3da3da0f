"""How near a kernel comes to the ceiling that binds it, in words: the same in tables, registry and report. No PyTorch.

A share is the time that the binding ceiling allows over the measured time. One above 100% never stands without the
sentence that says why.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, str] = {
    "dram": "DRAM",
    "cache": "cache",
    "tensor": "matrix products",
    "vector": "vector arithmetic",
    "special": "special functions",
    "launch": "launches",
}
"""Roof -> its name, as tables have it."""

NEARER_CACHE = "part of the data probably stayed in a nearer cache"

BEATEN: Mapping[str, str] = {
    "dram": "part of the data probably stayed in the cache",
    "cache": NEARER_CACHE,
}
"""Roof -> why a kernel may be faster than it, where nothing else was recorded."""

TOO_LOW = "the ceiling was measured too low: the clock was higher, or the machine less busy, in the race"
"""The same of every other roof, since no cache gets round arithmetic."""


def share_text(share: float | None, bound: str | None) -> str:
    """``94% matrix products``; empty where no share is known."""
    if share is None:
        return ""
    return f"{share:.0%} {NAMES.get(bound or '', bound or '')}".strip()


def why_above(share: float | None, bound: str | None, recorded: str | None = None) -> str | None:
    """Why a share is above 100%: as recorded, else what is usual for the roof. None where it is not above."""
    if share is None or share <= 1:
        return None
    return recorded or BEATEN.get(bound or "", TOO_LOW)


def above_line(op: str, case: str, share: float | None, bound: str | None, recorded: str | None = None) -> str | None:
    """``! linear_scan B2-T37-D24-float32: 112% DRAM: part of ...``; None for a share that is not above 100%."""
    why = why_above(share, bound, recorded)
    return None if why is None else f"! {op} {case}: {share_text(share, bound)}: {why}"
