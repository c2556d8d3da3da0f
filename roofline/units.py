"""Times, sizes and amounts as text and from text: units of pages, words of messages, and what people type."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from griffin_kernels import errors
from griffin_kernels.texts import shortened

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


COUNTS: Mapping[str, int] = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
"""Suffixes of counts of tokens and sequences, in powers of 1024: a context of 32k is 32,768 tokens."""

SIZES: Mapping[str, int] = {
    "": 2**30, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
"""Units of sizes of memory; GiB where none is given."""

TIMES: Mapping[str, Fraction] = {
    "ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6), "ms": Fraction(1, 1000),
    "s": Fraction(1), "min": Fraction(60), "h": Fraction(3600),
}  # fmt: skip
"""Units of times; one must be given."""

_AMOUNT = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*([^\W\d_]*)")


def _amount(text: str, units: Mapping[str, int] | Mapping[str, Fraction]) -> Fraction | None:
    """The number times its unit, exactly; None for what is no number with one of ``units``."""
    found = _AMOUNT.fullmatch(text.strip())
    unit = units.get(found[2].lower()) if found else None
    try:
        return None if found is None or unit is None else Fraction(found[1]) * unit
    except ValueError:  # more digits than Python turns into a number
        return None


def count(text: str, name: str, most: int | None = None) -> int:
    """``2048``, ``2k``, ``1.5M``: a whole number from 1 to ``most``, with a suffix of COUNTS in either case.

    name: of the argument, for the message. Raises ArgumentError.
    """
    found = _amount(text, COUNTS)
    if found is None or found.denominator != 1:
        raise errors.ArgumentError(f"{name} is {shortened(text)}, expected a whole number such as 2048, 2k or 1M")
    if found < 1:
        raise errors.ArgumentError(f"{name} is {text.strip()}, expected at least 1")
    if most is not None and found > most:
        raise errors.ArgumentError(f"{name} is {shortened(text.strip())[1:-1]}, expected at most {most}")
    return int(found)


def counts(text: str, name: str, most: int | None = None) -> tuple[int, ...]:
    """``1,8,2k``: several, at least one; raises as ``count``."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise errors.ArgumentError(f"{name} is {shortened(text)}, expected whole numbers such as 1,8,2k")
    return tuple(count(part, name, most) for part in parts)


def size(text: str, name: str, least: int = 1) -> int:
    """``8GiB``, ``40 GB``, ``8`` (GiB): bytes, at least ``least``. Raises ArgumentError naming the argument."""
    found = _amount(text, SIZES)
    if found is None:
        raise errors.ArgumentError(f"{name} is {shortened(text)}, expected a size such as 8GiB, 80GB or 512MiB")
    if found < least:
        raise errors.ArgumentError(f"{name} is {shortened(text.strip())[1:-1]}, expected a size from {least} B up")
    return math.floor(found)


def duration(text: str, name: str) -> float:
    """``50ms``, ``2 s``, ``100us``: seconds, more than none. Raises ArgumentError naming the argument."""
    found = _amount(text, TIMES)
    if found is None:
        raise errors.ArgumentError(f"{name} is {shortened(text)}, expected a time with its unit such as 50ms or 2s")
    if found <= 0:
        raise errors.ArgumentError(f"{name} is {shortened(text.strip())[1:-1]}, expected more than 0")
    return float(found)


def amounts(text: str, name: str) -> tuple[float, ...]:
    """``2.5`` or ``2.5,1.9``: numbers above 0, without a unit. Raises ArgumentError naming the argument."""
    found = [_amount(part, {"": 1}) for part in text.split(",")]
    if any(part is None or part <= 0 for part in found):
        raise errors.ArgumentError(f"{name} is {shortened(text)}, expected numbers above 0 such as 2.5 or 2.5,1.9")
    return tuple(float(part) for part in found if part is not None)
