"""What registries say of a device's kernels: the share of its floor that each reaches. Needs no PyTorch.

Five answers about a case, the first that there is:

1. *measured*: a registry that was measured on the SKU has an entry near enough, as dispatch would take it
2. *predicted*: one that was predicted for the SKU has
3. *guessed*: either has one of the op and dtype that look-up holds for too far away; its share is carried over
4. *guessed*: a registry of another SKU of the vendor has one, of the same architecture or the nearest
5. none: what runs instead is counted, PyTorch's kernels one by one

Guessing takes the share of the floor, not a time: large sizes reach alike shares, and devices too.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from griffin_kernels import errors, kernel_sources, registry_files
from griffin_kernels.case import Case
from griffin_kernels.datasheet import Datasheet, datasheet, skus
from griffin_kernels.nearness import MAX_FACTOR, Nearness, distance, preference
from griffin_kernels.records import Entry
from griffin_kernels.texts import slug
from roofline.ceilings import Ceilings

Status = Literal["measured", "predicted", "guessed"]

WORDS: dict[Status, str] = {"measured": "measured at", "predicted": "predicted to reach", "guessed": "guessed to reach"}
"""What a share rests on, in words."""


@dataclass(frozen=True)
class Tuned:
    """A kernel of this package near a case. share: of its floor's speed that it reaches, launch included. why: which
    entry says so. status: what that rests on."""

    share: float
    why: str
    status: Status = "measured"


def tuned(entry: Entry, ceilings: Ceilings, status: Status | None = None) -> Tuned | None:
    """What an entry says of cases near its own; None where it has no time, or nothing is known of its floor.

    A prediction is not believed to beat the floor.
    """
    seconds = entry.median_s if entry.status == "measured" else entry.predicted_s
    cost = _cost_module(entry.op).cost(entry.case)
    floor = max(ceilings.slow(cost, entry.case.dtype, cost.bytes_total, launches=0).values(), default=0.0)
    if not seconds or not floor:
        return None
    share = floor / seconds
    if entry.status == "predicted":
        share = min(1.0, share)
    status = status or entry.status
    return Tuned(share, f"{entry.variant}, {WORDS[status]} {share:.0%} of its floor ({entry.case.key})", status)


def _cost_module(op: str) -> ModuleType:
    return importlib.import_module(f"griffin_kernels.ops.{op}.cost")


def rule_of(op: str) -> Nearness:
    """What look-up compares of an op's cases; a gradient's are those of its forward op."""
    rule: Nearness = getattr(_cost_module(op.removesuffix("_bwd")), "NEAR", Nearness())
    return rule


def _shipped(sheet: Datasheet) -> bool:
    """Whether a SKU has a registry that ships, or one of the user's."""
    names = [slug(name) for name in sheet.driver_names]
    folders = (registry_files.user_folder(), registry_files.SHIPPED)
    return any(registry_files.within(folder, names).exists() for folder in folders)


class SkuKernels:
    """The registries of a SKU that need not be there: what dispatch would find on a machine that has it."""

    def __init__(self, sheet: Datasheet, ceilings: Ceilings) -> None:
        self.sheet, self.ceilings = sheet, ceilings
        self._known: dict[tuple[str, str], Tuned | None] = {}

    def __call__(self, case: Case, op: str) -> Tuned | None:
        """What is known of a case of an op; looked up once."""
        key = (op, case.key)
        if key not in self._known:
            self._known[key] = self._find(op, case) or self._elsewhere(op, case)
        return self._known[key]

    def _elsewhere(self, op: str, case: Case) -> Tuned | None:
        """What another SKU's registry says of its own device."""
        for other in self.neighbours:
            if (known := other._find(op, case)) is not None:
                said = f"{known.why}, on {other.sheet.sku}"
                return replace(known, status="guessed", why=said.replace(WORDS[known.status], WORDS["guessed"]))
        return None

    @functools.cached_property
    def neighbours(self) -> list[SkuKernels]:
        """Other SKUs of the vendor that have a registry, the nearest architecture first."""

        def far(sheet: Datasheet) -> tuple[bool, int, str]:
            number, own = (int("".join(filter(str.isdigit, arch)) or 0) for arch in (sheet.arch, self.sheet.arch))
            return sheet.arch != self.sheet.arch, abs(number - own), sheet.sku

        others = [sheet for sku in skus() if (sheet := datasheet(sku)).vendor == self.sheet.vendor]
        there = [s for s in others if s.sku != self.sheet.sku and s.driver_names and _shipped(s)]
        return [SkuKernels(sheet, Ceilings.from_datasheet(sheet)) for sheet in sorted(there, key=far)]

    @functools.cached_property
    def entries(self) -> list[tuple[int, Entry]]:
        """(place of its source, entry) of every registry of the SKU, of kernels that have not changed since.

        A file that cannot be read gives one RegistryWarning; one of another device is none of these.
        """
        return [
            (place, entry)
            for place, path in enumerate(registry_files.sources([slug(name) for name in self.sheet.driver_names]))
            for entry in self._of(path)
            if entry.source_hash == kernel_sources.source_hash(entry.op, entry.variant)
        ]

    def _of(self, path: Path) -> Iterator[Entry]:
        kind = {"NVIDIA": "cuda", "AMD": "hip"}.get(self.sheet.vendor)
        facts = {"kind": kind, "name": self.sheet.driver_names[0], "arch": self.sheet.arch, "units": self.sheet.units}
        try:
            file = registry_files.load(path)
        except errors.RegistryError as error:
            errors.warn(f"{error}. It is not used.", errors.RegistryWarning)
            return
        if registry_files.same_sku(file.device.validity, facts):
            yield from file.entries

    def _find(self, op: str, case: Case) -> Tuned | None:
        if not self.sheet.driver_names:
            return None
        rule = rule_of(op)
        mine = [(place, entry) for place, entry in self.entries if entry.op == op]
        for most in (MAX_FACTOR, math.inf):
            found = [
                (preference(entry.status, place, far), entry)
                for place, entry in mine
                if (far := distance(rule, case, entry.case, most)) is not None
            ]
            for _, entry in sorted(found, key=lambda pair: pair[0]):
                if (known := tuned(entry, self.ceilings, None if most == MAX_FACTOR else "guessed")) is not None:
                    return known
        return None
