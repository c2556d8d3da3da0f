"""Numbers and names as a person reads them: three significant digits, sensible units, no exponents but for errors."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from griffin_kernels.case import Case, telling
from roofline.shares import NAMES
from roofline.units import PREFIXES, TIME_UNITS, units_text

MISSING = "\u2013"
"""Shown where nothing was recorded."""

THIN_SPACE = "\u202f"
MINUS = "\u2212"
TIMES = "\u00d7"

RATE_UNITS: Mapping[str, str] = {
    "bytes_per_s": "B/s",
    "flops_per_s": "FLOP/s",
    "flop_per_s": "FLOP/s",
    "ops_per_s": "ops/s",
}

FACT_UNITS: Mapping[str, str] = {"_watts": "W", "_mhz": "MHz", "_gib": "GiB"}

BOUND_NAMES: Mapping[str, str] = {
    **NAMES,
    "dram_copy": "DRAM copy",
    "dram_add": "DRAM add",
    "dram_triad": "DRAM triad",
    "dram_read": "DRAM read",
    "cache_triad": "cache triad",
    "l2": "L2",
    "vector_fp32": "vector FP32",
    "vector_float32": "vector FP32",
    "special_exp": "special functions (exp)",
    "matmul": "matrix products",
    "launch": "launch",
    "issue": "instruction issue",
    "latency": "latency",
    "shared": "shared memory",
}


def significant(value: float, digits: int = 3) -> str:
    """Fixed notation with ``digits`` significant digits: ``0.0123``, ``12.3``, ``12 300``."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - exponent)
    if rounded and math.floor(math.log10(abs(rounded))) > exponent:
        exponent += 1
    text = f"{abs(rounded):,.{max(0, digits - 1 - exponent)}f}".replace(",", THIN_SPACE)
    return f"{MINUS}{text}" if value < 0 else text


def time_unit(seconds: float | None) -> tuple[float, str]:
    """(scale, name) of the unit in which a time has one to three digits before the point."""
    return _scaled(seconds, TIME_UNITS, TIME_UNITS[-1]) if seconds else (1e-6, "µs")


def _scaled(value: float, units: Sequence[tuple[float, str]], least: tuple[float, str]) -> tuple[float, str]:
    """(scale, name) of the largest unit that a value has one of, else the ``least``."""
    return next((unit for unit in units if abs(value) >= unit[0]), least)


def time(seconds: float | None) -> str:
    """``87.3 µs``."""
    if seconds is None:
        return MISSING
    scale, name = time_unit(seconds)
    return f"{significant(seconds / scale)}{THIN_SPACE}{name}"


def time_in(seconds: float | None, scale: float) -> str:
    """A time in a given unit, without its name, for columns with one unit."""
    return MISSING if seconds is None else significant(seconds / scale)


def ratio(value: float | None) -> str:
    """A speedup or another ratio, with the multiplication sign after it."""
    return MISSING if value is None else f"{significant(value)}{TIMES}"


def share(value: float | None) -> str:
    """``68%``; one digit after the point below 10%."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f}".removesuffix(".0") + "%" if value < 0.0995 else f"{100 * value:.0f}%"


def error(value: float | None) -> str:
    """``1.6e-3``: an error figure. None is an infinite one: the journal's JSON has no infinity."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{MINUS if exponent.startswith('-') else ''}{exponent[1:].lstrip('0') or '0'}"


def rate(value: float, unit: str) -> str:
    """A ceiling's value: ``2.93 TB/s``, ``2.40 µs``."""
    if unit in ("s", "seconds"):
        return time(value)
    if unit in ("fraction", "ratio", "share"):
        return f"{significant(100 * value)}%"
    scale, prefix = _scaled(value, PREFIXES, (1.0, "")) if unit in RATE_UNITS else (1.0, "")
    return f"{significant(value / scale)} {prefix}{RATE_UNITS.get(unit, unit)}".strip()


def duration(seconds: float) -> str:
    """``21 min 37 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if not hours else ""]
    return " ".join(part for part in parts if part)


def size(count: int) -> str:
    """Bytes: ``50 MiB``."""
    scale, name = _scaled(count, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")), (1, "B"))
    return f"{count if scale == 1 else significant(count / scale)} {name}"


def decimal(count: float, unit: str = "B") -> str:
    """A size or an amount in powers of 1000: ``47.2 MB``, ``1.24 GFLOP``."""
    scale, prefix = _scaled(count, PREFIXES, (1.0, ""))
    whole = scale == 1 and count == int(count)
    return f"{int(count) if whole else significant(count / scale)}{THIN_SPACE}{prefix}{unit}"


def count(value: int) -> str:
    """A whole number with its thousands apart: ``12 300``."""
    return f"{value:,}".replace(",", THIN_SPACE)


def date(text: str) -> str:
    """``2026-11-20T08:00:03+00:00`` -> ``2026-11-20 08:00 UTC``; anything else is left as it is."""
    day, _, clock = text.partition("T")
    if len(clock) >= 8 and clock[8:] in ("Z", "+00:00"):
        return f"{day} {clock[:5]} UTC"
    return text


def device_kind(facts: Mapping[str, Any]) -> str:
    """Architecture and size of a device: ``x86-64-avx512, 2 cores``."""
    size = units_text(facts.get("units"), facts.get("kind"))
    return ", ".join([str(facts["arch"])] * ("arch" in facts) + [size] * ("units" in facts))


def case(record: Case) -> str:
    """``B 8 · T 2048 · D 2560``: the telling sizes; dtype and flags are shown beside."""
    return " · ".join(f"{name}\u00a0{value}" for name, value in telling(record.dims).items())


def marks(record: Case) -> list[str]:
    """Dtype, flags and data of a case, each shown as a mark of its own."""
    return [record.dtype, *record.flags, *record.data]


def case_label(record: Case) -> str:
    """Sizes and marks in one line."""
    return " · ".join([case(record), *marks(record)])


def config(values: Mapping[str, Any]) -> str:
    """``block_t=32 num_warps=4``; empty where there is nothing to tune."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def kernel(variant: str, values: Mapping[str, Any]) -> str:
    """A variant and its configuration."""
    return f"{variant} {config(values)}".strip()


def bound(name: str | None) -> str:
    """A ceiling's name in words."""
    return MISSING if name is None else BOUND_NAMES.get(name, name.replace("_", " "))


def label(name: str) -> str:
    """A field's name in words: ``last_level_cache_bytes`` -> ``last level cache``."""
    for ending in ("_bytes", *FACT_UNITS):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def fact(name: str, value: Any) -> str:
    """A recorded fact with the unit that its name carries."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return MISSING
    if isinstance(value, int | float):
        if name.endswith("_bytes"):
            return size(int(value))
        for ending, unit in FACT_UNITS.items():
            if name.endswith(ending):
                return f"{value:g} {unit}"
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(str, value)) or MISSING
    return json.dumps(value, sort_keys=True)


def brief(reason: str) -> str:
    """A reason without what it says in brackets, for a table; the case's section has it whole."""
    return re.sub(r" \[[^\]]*\]| \([^)]*\)", "", reason)


def why_predicted(reason: str) -> str:
    """A prediction's reason without what the row says anyway: its time, its bound and that nothing was measured."""
    head, _, rest = reason.partition("; ")
    return rest if head.startswith("predicted for ") and rest else reason


def fragment(anchor: str) -> str:
    """An anchor as the fragment of a link."""
    return urllib.parse.quote(anchor, safe="/+~=,.-_:")


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 case``, ``3 cases``."""
    return f"{count} {one if count == 1 else many or one + 's'}"
