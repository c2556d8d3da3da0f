"""Ceilings of a device: what memory, arithmetic and launching reach at best, and where each figure comes from.

Nothing here needs PyTorch: ``roofline.measure`` takes the measurements, ``roofline.store`` keeps them.

A ceiling is ``measured`` on the device, taken from its ``datasheet``, or ``assumed``. One that is not known is None: no
neighbour's figure takes its place. Rates are per second, times are seconds, bytes are bytes.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from griffin_kernels.case import DTYPE_BYTES, Cost
from griffin_kernels.records import DeviceRecord
from roofline import reached

if TYPE_CHECKING:
    from griffin_kernels.datasheet import Datasheet

CEILINGS_VERSION = 1
"""Version of the ceilings file. A reader refuses a file of a later version and says so."""

CACHE_SHARE = 4
"""Data counts as cached up to the last-level cache over this: the size at which the cache is measured, which leaves
room for what else the caches hold."""

EARLIER = "; an earlier measurement reached this"
"""End of the source of a ceiling that the last measurement did not reach."""

DISTURBED = "; other processes took the cores meanwhile, so this is too low"
"""In the source of a ceiling that was measured on a busy machine."""

LAUNCH_ASSUMED_S = 5e-6
"""Seconds per GPU kernel launched from eager PyTorch, where nothing was measured: the low end of the 5 to 25 us of
host work per operator that https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html counts."""

MATMUL_DTYPES = (*DTYPE_BYTES, "tf32", "fp8")
"""Dtypes of matrix products, by the names that ``Datasheet.tensor_flops_per_s`` takes."""

Unit = Literal["bytes_per_s", "flops_per_s", "ops_per_s", "s"]
Origin = Literal["measured", "datasheet", "assumed"]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Ceiling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ceiling: ``value`` in ``unit``, with its 95 % interval; [value, value] where it was not measured.

    name: ``dram_copy``, ``dram_triad``, ``dram_read``, ``cache_triad``; ``matmul_<dtype>``,
    ``matmul_rows_<dtype>_<rows>``, ``matmul_wide_<dtype>_<rows>``; ``vector_float32``, ``special_exp``; ``launch``,
    ``launch_graph``; ``dram`` and ``special`` of a datasheet.
    source: one sentence, what was run or which document says so.
    samples: every sample in ``unit``, as measured, to four digits.
    """

    name: str
    unit: Unit
    value: Positive
    low: Positive
    high: Positive
    origin: Origin
    source: str
    samples: list[float] = []

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.value <= self.high < math.inf):
            raise ValueError(f"ceiling {self.name!r} needs 0 < low <= value <= high, all finite")

    @property
    def usual(self) -> float:
        """The median of the samples: what is reached beside neighbours as they were. The value without samples.

        Never better than the ceiling, whose value may be older than the samples.
        """
        found = statistics.median(self.samples) if self.samples else self.value
        return max(found, self.value) if self.unit == "s" else min(found, self.value)

    @classmethod
    def stated(cls, name: str, unit: Unit, value: float, origin: Origin, source: str) -> Ceiling:
        """A ceiling that nobody measured here: its interval has no width."""
        return cls(name=name, unit=unit, value=value, low=value, high=value, origin=origin, source=source)


class CeilingsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The measured ceilings of one device: validity must equal the reader's device, provenance is recorded."""

    schema_version: int
    device: DeviceRecord
    ceilings: list[Ceiling]


def best_of(earlier: Iterable[Ceiling], now: Iterable[Ceiling]) -> list[Ceiling]:
    """The ceilings of ``now``, each no worse than it was ``earlier``: a device that was once seen to reach a rate can.

    On a shared host what a measurement reaches changes by tens of per cent from one minute to the next. An earlier best
    keeps its interval; the samples, and with them the usual rate, are those of now.
    """
    before = {ceiling.name: ceiling for ceiling in earlier}
    kept = []
    for ceiling in now:
        old = before.get(ceiling.name)
        better = old is not None and (old.value < ceiling.value if ceiling.unit == "s" else old.value > ceiling.value)
        if old is not None and better:
            source = old.source.removesuffix(EARLIER) + EARLIER
            ceiling = msgspec.structs.replace(ceiling, value=old.value, low=old.low, high=old.high, source=source)
        kept.append(ceiling)
    return kept


def held(fixed: Iterable[Ceiling], now: Iterable[Ceiling]) -> list[Ceiling]:
    """The ceilings of ``now`` and ``fixed``, each as it is in ``fixed`` where it is there: what kernels were judged by.

    The samples, and with them the usual rate, are those of now. One that now reaches more says so in its source.
    """
    measured = {ceiling.name: ceiling for ceiling in now}
    kept = {}
    for old in fixed:
        new = measured.get(old.name, old)
        better = new.high < old.low if old.unit == "s" else new.low > old.high
        ratio = old.value / new.value if old.unit == "s" else new.value / old.value
        source = old.source + (f"; {ratio:.2f} times this was reached afterwards" if better else "")
        kept[old.name] = msgspec.structs.replace(old, source=source, samples=new.samples or old.samples)
    return list((measured | kept).values())


def peak(name: str, stated: Iterable[Ceiling]) -> Ceiling | None:
    """The datasheet's entry that a measured ceiling is held against, of those ``stated``; None where it has none."""
    kind = name.partition("_")[0]
    entry = kind if kind in ("dram", "special") else name
    return next((ceiling for ceiling in stated if (ceiling.name, ceiling.origin) == (entry, "datasheet")), None)


@dataclass(frozen=True)
class Ceilings:
    """The ceilings that an analysis divides by. cache_bytes: the last-level cache, 0 where it is not known."""

    device: str
    table: tuple[Ceiling, ...]
    cache_bytes: int = 0

    @classmethod
    def of(cls, file: CeilingsFile) -> Ceilings:
        """Those that were measured on a device."""
        facts = file.device.validity
        return cls(str(facts.get("name", "unnamed")), tuple(file.ceilings), int(facts.get("last_level_cache_bytes", 0)))

    @classmethod
    def from_datasheet(cls, sheet: Datasheet) -> Ceilings:
        """Those that the maker states and, of a GPU, times of a launch; what is not stated is left out."""
        source = f"datasheet {sheet.sku}"
        stated: list[tuple[str, Unit, float | None]] = [
            ("dram", "bytes_per_s", sheet.dram_bytes_per_s),
            *((f"matmul_{dtype}", "flops_per_s", sheet.tensor_flops_per_s(dtype)) for dtype in MATMUL_DTYPES),
            ("vector_float32", "flops_per_s", sheet.vector_flops_per_s),
            ("special", "ops_per_s", sheet.special_ops_per_s),
        ]
        table = [Ceiling.stated(n, unit, value, "datasheet", source) for n, unit, value in stated if value is not None]
        node = reached.graph_node_s(sheet)
        if node is not None:  # a GPU; a compiled program on a TPU launches nothing
            told = (
                f"assumed: {LAUNCH_ASSUMED_S * 1e6:g} us per kernel launched from eager PyTorch, until it is measured"
            )
            table.append(Ceiling.stated("launch", "s", LAUNCH_ASSUMED_S, "assumed", told))
            origin: Origin = "datasheet" if node.published else "assumed"
            told = f"{source}, one kernel after the other in a graph" if node.published else node.why
            table.append(Ceiling.stated("launch_graph", "s", node.value, origin, told))
        return cls(sheet.name, tuple(table), sheet.last_level_cache_bytes or 0)

    @cached_property
    def usual(self) -> Ceilings:
        """The same with every ceiling at its usual value: what predictions divide by. Floors take the ceilings."""
        table = tuple(msgspec.structs.replace(c, value=c.usual, low=c.usual, high=c.usual) for c in self.table)
        return Ceilings(self.device, table, self.cache_bytes)

    @cached_property
    def _named(self) -> Mapping[str, Ceiling]:
        return {ceiling.name: ceiling for ceiling in self.table}

    def ceiling(self, name: str) -> Ceiling | None:
        """One entry of the table by its own name, with interval, origin and source."""
        return self._named.get(name)

    def roof(self, name: str, dtype: str = "float32") -> Ceiling | None:
        """The entry behind ``dram``, ``cache``, ``tensor`` (of ``dtype``), ``vector``, ``special`` or ``launch``.

        Of several, the one that reaches most: a ceiling is what the device can do.
        """
        entries = {
            "dram": ("dram", "dram_copy", "dram_triad", "dram_read"),
            "cache": ("cache_triad",),
            "tensor": (f"matmul_{dtype}",),
            "vector": ("vector_float32",),
            "special": ("special", "special_exp"),
            "launch": ("launch",),
        }[name]
        found = [self._named[entry] for entry in entries if entry in self._named]
        return max(found, key=lambda ceiling: ceiling.value, default=None)

    def value(self, name: str) -> float | None:
        """The figure of a roof: bytes/s of ``dram`` and ``cache`` (the last level; on a GPU its L2); FLOP/s of
        ``vector`` (float32 outside matrix units, a multiply-add counted as 2); results/s of ``special`` (exp and its
        like); seconds of a ``launch`` (an operator called from Python: dispatch on a CPU, a kernel launch on a GPU)."""
        found = self.roof(name)
        return None if found is None else found.value

    def entry(self, name: str, dtype: str) -> Ceiling | None:
        """The roof that work in ``dtype`` is judged by.

        That is float32's for products in a dtype that the device does not multiply itself, as on many CPUs: they are
        done after conversion, and where ceilings are measured such a dtype has no rate of its own.
        """
        found = self.roof(name, dtype)
        if found is None and name == "tensor" and (plain := self.roof(name, "float32")) is not None:
            found = plain if plain.origin == "measured" else None
        return found

    @property
    def tensor_flops_per_s(self) -> dict[str, float]:
        """Matrix products by dtype, large and square."""
        found = {dtype: self.roof("tensor", dtype) for dtype in MATMUL_DTYPES}
        return {dtype: ceiling.value for dtype, ceiling in found.items() if ceiling is not None}

    @property
    def matmul_rows(self) -> dict[str, dict[int, float]]:
        """FLOP/s of matrix products by dtype and rows, with weights that come from DRAM; empty if not measured."""
        return self._curves("matmul_rows_")

    def _curves(self, prefix: str) -> dict[str, dict[int, float]]:
        curves: dict[str, dict[int, float]] = {}
        for ceiling in self.table:
            dtype, _, rows = ceiling.name.removeprefix(prefix).partition("_")
            if ceiling.name.startswith(prefix) and rows.isdecimal():
                curves.setdefault(dtype, {})[int(rows)] = ceiling.value
        return {dtype: dict(sorted(curve.items())) for dtype, curve in curves.items()}

    def matmul_flops_per_s(self, rows: int, dtype: str, weight_bytes: int = 0) -> float | None:
        """FLOP/s of a product of ``rows`` rows: on straight lines in log-log between the measured rows.

        A weight of more than twice the last-level cache, as an output matrix is, takes the curve of wide ones, if there
        is one. Beyond either end the nearest is taken; without a curve, the large product's.
        """
        curve = self._curves("matmul_wide_").get(dtype) if weight_bytes > 2 * self.cache_bytes else None
        curve = curve or self.matmul_rows.get(dtype)
        if not curve:
            return self.tensor_flops_per_s.get(dtype)
        known = list(curve)
        after = bisect.bisect_left(known, rows)
        if after in (0, len(known)):
            return curve[known[min(after, len(known) - 1)]]
        left, right = known[after - 1], known[after]
        share = math.log(rows / left) / math.log(right / left)
        return curve[left] * math.pow(curve[right] / curve[left], share)

    def slow(
        self, cost: Cost, dtype: str, working_set_bytes: float | None = None, launches: int = 1
    ) -> dict[str, float]:
        """Seconds that each ceiling alone would take for a cost: ``dram`` or ``cache``, ``tensor``, ``vector``,
        ``special``, ``launch``; what is not known or not needed is left out.

        working_set_bytes: bytes that are used again and again. ``cache`` stands in for ``dram`` where these fit in the
        last-level cache over CACHE_SHARE and its rate is known; without it everything comes from DRAM.
        """
        cached = working_set_bytes is not None and 0 <= working_set_bytes * CACHE_SHARE <= self.cache_bytes
        memory = "cache" if cached and self.value("cache") else "dram"
        work = {memory: cost.bytes_total, "tensor": cost.tensor_flops, "vector": cost.vector_flops}
        work["special"] = cost.special_ops
        roofs = {name: self.entry(name, dtype) for name, amount in work.items() if amount}
        seconds = {name: work[name] / roof.value for name, roof in roofs.items() if roof is not None}
        launch = self.value("launch")
        return seconds | ({"launch": launches * launch} if launches and launch is not None else {})
