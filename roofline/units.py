"""Times, sizes and amounts as text: the units of every page, and the words of terminals and messages."""

from __future__ import annotations

TIME_UNITS: tuple[tuple[float, str], ...] = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))

PREFIXES: tuple[tuple[float, str], ...] = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds_text(seconds: float) -> str:
    """``1.23 ms``: three digits and a unit, in ASCII."""
    scale, unit = next((u for u in TIME_UNITS if seconds >= u[0]), TIME_UNITS[-1])
    return f"{seconds / scale:.3g} {unit.replace('µ', 'u')}"


def si(value: float, unit: str = "") -> str:
    """``12.3 G``: three digits and a prefix of 1000s."""
    scale, prefix = next((p for p in PREFIXES if abs(value) >= p[0]), (1.0, ""))
    return f"{value / scale:.3g} {prefix}{unit}".rstrip()


def clock_text(seconds: float) -> str:
    """``2:05``, ``1:02:05``: minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def gib(size: float) -> str:
    """``3.21 GB``, decimal."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def units_text(count: object, kind: object) -> str:
    """``132 SMs``, ``304 CUs``, ``8 cores``: the units of a device, by its kind, in the words of its vendor."""
    return f"{count} {'cores' if kind == 'cpu' else 'CUs' if kind == 'hip' else 'SMs'}"
