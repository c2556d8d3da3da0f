"""What the tab *Roofline* shows, worked out from a study: kernels by time lost, what binds them, ceilings. No HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from reports import format as fmt
from roofline.ceilings import Ceiling, Ceilings, peak
from roofline.shares import NAMES, why_above
from roofline.study_records import FusionRow, KernelFloor, Study
from tuning.record.journal_records import CeilingRecord

ROOFS: Mapping[str, tuple[str, str]] = {
    "dram": (NAMES["dram"], "moving data to and from main memory (DRAM)"),
    "cache": (NAMES["cache"], "moving data to and from the last-level cache"),
    "tensor": (NAMES["tensor"], "matrix products"),
    "vector": (NAMES["vector"], "vector arithmetic (float32 sums and products outside of matrix products)"),
    "special": (NAMES["special"], "special functions (exp, sigmoid, sqrt and their like)"),
    "launch": (NAMES["launch"], "launching kernels"),
}
"""Roof -> its name in a table, and the work that it limits, in words."""


def roof_name(name: str) -> str:
    return ROOFS[name][0] if name in ROOFS else fmt.bound(name)


def roof_work(name: str) -> str:
    return ROOFS[name][1] if name in ROOFS else fmt.bound(name)


@dataclass(frozen=True)
class CaseName:
    """A case's key taken apart. dims: ``B 8 · T 2048``. marks: dtype, flags and data."""

    dims: str
    dtype: str
    marks: tuple[str, ...]

    @classmethod
    def of(cls, key: str) -> CaseName:
        found = re.fullmatch(r"((?:[A-Za-z]+\d+-)+)([a-z]+\d+)((?:[+~][^+~]+)*)", key)
        if found is None:
            return cls(key, "", ())
        dims = re.findall(r"([A-Za-z]+)(\d+)-", found[1])
        text = " · ".join(f"{name}\u00a0{size}" for name, size in dims)
        return cls(text, found[2], (found[2], *re.findall(r"[+~]([^+~]+)", found[3])))

    def __str__(self) -> str:
        return " · ".join([self.dims, *self.marks])


@dataclass(frozen=True)
class KernelView:
    """A kernel in the order of time lost. rank: from 1. anchor: of its case in the tuning tab, None if it has none."""

    rank: int
    record: KernelFloor
    anchor: str | None

    @cached_property
    def name(self) -> CaseName:
        return CaseName.of(self.record.case)

    @property
    def id(self) -> str:
        """Of its row in this tab."""
        return f"roofline-kernel-{self.rank}"

    @property
    def goal(self) -> str:
        """Fragment of the link that its mark is."""
        return "#" + fmt.fragment(self.anchor or self.id)

    @property
    def label(self) -> str:
        return f"{self.record.op} {self.name}"

    @property
    def operations(self) -> int:
        """Everything that is computed: multiply-adds counted as 2, a special function's result as 1."""
        return self.record.tensor_flops + self.record.vector_flops + self.record.special_ops

    @property
    def floor_s(self) -> float:
        return self.record.floors_s[self.record.bound]

    @property
    def intensity(self) -> float | None:
        """Operations per byte; None where there are none of either."""
        return self.operations / self.record.bytes if self.operations and self.record.bytes else None

    @property
    def reached(self) -> float:
        """Operations per second."""
        return self.operations / self.record.measured_s

    @property
    def limit(self) -> float:
        """Operations per second if it took its floor: where its own mixture of work meets the roof that binds it."""
        return self.operations / self.floor_s

    @property
    def over(self) -> str | None:
        """Why it may be faster than its ceiling; None if it is not."""
        return why_above(self.record.share, self.record.bound, self.record.above)


@dataclass(frozen=True)
class Roof:
    """A line of the roofline. slanted: bytes per second, else operations per second. key: distinguishes it."""

    key: str
    role: str
    label: str
    ceiling: Ceiling
    slanted: bool

    @property
    def value(self) -> float:
        return self.ceiling.value

    @property
    def rate(self) -> str:
        return ceiling_rate(self.ceiling, self.ceiling.value)


def ceiling_rate(ceiling: Ceiling, value: float) -> str:
    """A ceiling's figure; special functions are counted by their results."""
    if ceiling.unit == "ops_per_s":
        return fmt.rate(value, "ops_per_s").replace("ops/s", " results/s").replace("  ", " ")
    return fmt.rate(value, ceiling.unit)


class RooflineView:
    """The whole tab. anchors: cases of the tuning tab."""

    def __init__(self, study: Study, anchors: Iterable[str] = ()) -> None:
        known = set(anchors)
        facts = study.device.validity
        self.study = study
        self.device = str(facts.get("name") or "unnamed device")
        cache = facts.get("last_level_cache_bytes")
        self.ceilings = Ceilings(self.device, tuple(study.ceilings), cache if isinstance(cache, int) else 0)
        kernels = sorted(study.kernels, key=lambda k: (-k.lost_s, k.op, k.case))
        self.kernels = [
            KernelView(rank, kernel, anchor if (anchor := f"{kernel.op}/{kernel.case}") in known else None)
            for rank, kernel in enumerate(kernels, 1)
        ]

    def others(self, judging: Iterable[CeilingRecord]) -> list[str]:
        """Names of ceilings that are not those of a tuning run, of those that both have: the study was made later."""
        known = {c.name: c.value for c in self.study.ceilings}
        return [fmt.bound(c.name) for c in judging if c.source and known.get(c.name, c.value) != c.value]

    @cached_property
    def bindings(self) -> list[tuple[str, int]]:
        """Roofs, and how many kernels each binds, the most first."""
        counted = Counter(kernel.record.bound for kernel in self.kernels)
        return sorted(counted.items(), key=lambda item: (-item[1], item[0]))

    @property
    def most(self) -> list[tuple[str, int]]:
        """The roof that binds most kernels, or those that share the first place."""
        return [(roof, count) for roof, count in self.bindings if count == self.bindings[0][1]]

    @property
    def worst(self) -> KernelView | None:
        """The kernel that loses most time; None if none loses any."""
        return next((kernel for kernel in self.kernels if kernel.record.lost_s > 0), None)

    @property
    def lost_s(self) -> float:
        """Time lost by one call of each."""
        return sum(kernel.record.lost_s for kernel in self.kernels)

    @property
    def beating(self) -> list[KernelView]:
        return [kernel for kernel in self.kernels if kernel.over]

    @property
    def floors(self) -> list[str]:
        """The roofs that some kernel has a floor under, in the order of ROOFS."""
        used = {name for kernel in self.kernels for name in kernel.record.floors_s}
        return [*(name for name in ROOFS if name in used), *sorted(used - set(ROOFS))]

    @cached_property
    def roofs(self) -> list[Roof]:
        """The lines that kernels are judged by, of those ceilings that were measured."""
        alone = [(role, role, roof_name(role), "float32") for role in ("dram", "cache", "vector", "special")]
        by_dtype = [(f"tensor-{d}", "tensor", f"matrix {d}", d) for d in self.ceilings.tensor_flops_per_s]
        return [
            Roof(key, role, label, ceiling, role in ("dram", "cache"))
            for key, role, label, dtype in (*alone, *by_dtype)
            if (ceiling := self.ceilings.roof(role, dtype)) is not None
        ]

    def roof_of(self, kernel: KernelView) -> str:
        """Key of the roof that a kernel is judged by."""
        bound = kernel.record.bound
        # products in a dtype without a roof of its own are judged by float32's
        own = kernel.name.dtype if kernel.name.dtype in self.ceilings.tensor_flops_per_s else "float32"
        return f"tensor-{own}" if bound == "tensor" else bound

    @cached_property
    def ceiling_rows(self) -> list[tuple[str, Ceiling, Ceiling | None]]:
        """Measured ceilings with their names in words, beside the datasheet's."""
        rows = []
        for c in self.study.ceilings:
            kind, _, rest = c.name.partition("_")
            name = f"matrix product {rest}" if kind == "matmul" else fmt.bound(c.name)
            rows += [] if c.name.startswith("matmul_rows_") else [(name, c, peak(c.name, self.study.datasheet))]
        return rows

    @property
    def has_peaks(self) -> bool:
        return any(c.origin == "datasheet" for c in self.study.datasheet)

    @cached_property
    def rows_curves(self) -> dict[str, list[tuple[int, Ceiling]]]:
        """Matrix products by dtype: rows and the ceiling that was measured with so many."""
        return {
            dtype: [(rows, self.ceilings.ceiling(f"matmul_rows_{dtype}_{rows}")) for rows in curve]  # type: ignore[misc]
            for dtype, curve in self.ceilings.matmul_rows.items()
        }

    @property
    def fusion(self) -> list[tuple[FusionRow, CaseName]]:
        """What fusing saves, with its case, the largest ratio of bytes first."""
        rows = sorted(self.study.fusion, key=lambda row: -row.unfused_bytes / row.fused_bytes)
        return [(row, CaseName.of(row.case)) for row in rows]
