"""How near a registry's entry is to a case, and which of several serves it. Needs no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from griffin_kernels.case import Case

MAX_FACTOR = 4
"""Largest ratio of any one dimension at which an entry still speaks for a case."""


class Comparing(Protocol):
    """Which sizes of an op count in look-up; see ``contract.Op``."""

    @property
    def exact_dims(self) -> tuple[str, ...]: ...
    @property
    def free_dims(self) -> tuple[str, ...]: ...
    @property
    def minor_flags(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Nearness:
    """The rule of an op, for who cannot import its contract; the fields are those of ``contract.Op``."""

    exact_dims: tuple[str, ...] = ()
    free_dims: tuple[str, ...] = ()
    minor_flags: tuple[str, ...] = ()


def distance(rule: Comparing, wanted: Case, known: Case, most: float = MAX_FACTOR) -> float | None:
    """How far an entry's sizes are from a case's: the largest |log2 ratio|; None where it cannot speak for it.

    A minor flag that only one of them has counts as a factor of two in a size. most: largest ratio of one dimension.
    """
    other = set(wanted.flags) ^ set(known.flags)
    if wanted.dtype != known.dtype or other - set(rule.minor_flags) or set(wanted.dims) != set(known.dims):
        return None
    far = float(len(other))
    for name, size in wanted.dims.items():
        if name in rule.free_dims or size == known.dims[name]:
            continue
        low, high = sorted((size, known.dims[name]))
        # in integers: a file may hold sizes that no float does
        if name in rule.exact_dims or low < 1 or (most < math.inf and high > most * low):
            return None
        far = max(far, math.log2(high) - math.log2(low) if most == math.inf else math.log2(high / low))
    return far


def preference(status: str, place: int, far: float) -> tuple[bool, int, float]:
    """A key to sort entries by, the one that serves first: measured before predicted, the best source, the nearest.

    place: of the entry's source in the order of sources.
    """
    return status == "predicted", place, far
