"""The ceilings of a run: one set, measured before its first race, by which every kernel of the run is judged.

The ceiling that binds a case is sampled again right before and right after its race. What is reached there raises the
set; where it stays far behind, the machine was slower during the race, and the share says less about the kernel.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from griffin_kernels import device as devices
from griffin_kernels import errors
from griffin_kernels.case import Case
from griffin_kernels.device import Device
from roofline import floors, measure, probes, store
from roofline.ceilings import DISTURBED, Ceiling, Ceilings
from tuning.record.journal_records import CeilingRecord

FRESH_S = 24 * 3600.0
"""Age up to which the user's stored ceilings are taken instead, where they are of the same device and software."""

MOST_BYTES = 2**30
"""Of a CPU's memory that buffers outside of its caches may hold through a run; beyond, DRAM is not sampled again."""

KIND = re.compile(r"dram_.*|cache_.*|vector_.*|special_.*|matmul_(?!rows_|wide_).*")
"""Names of the ceilings that kernels are judged by, as ``probes.roofs`` measures them."""


def stored(path: Path, device: Device, now: datetime.datetime) -> list[Ceiling]:
    """The user's ceilings of a device that kernels are judged by, where fresh, whole and undisturbed; else none."""
    if not path.exists():
        return []
    try:
        file = store.load_of(path, device)
        age = now - datetime.datetime.fromisoformat(str(file.device.provenance.get("date")))
    except (errors.CeilingsError, ValueError, TypeError):
        return []  # what writes the file says what is wrong with it
    judging = [c for c in earlier(path, device) if KIND.fullmatch(c.name)]
    whole = {c.name.partition("_")[0] for c in judging} >= {"dram", "matmul", "vector", "special"}
    calm = not any(DISTURBED in c.source for c in judging)
    return judging if whole and calm and 0 <= age.total_seconds() <= FRESH_S else []


def earlier(path: Path, device: Device) -> list[Ceiling]:
    """The user's ceilings that were measured with this software, however long ago; none where the file is unusable."""
    try:
        return store.earlier(path, device, devices.provenance(device))
    except errors.CeilingsError:
        return []  # what writes the file says what is wrong with it


def recorded(records: Mapping[str, CeilingRecord]) -> list[Ceiling]:
    """The set that a journal holds; none where an earlier version wrote it, or nothing."""
    if not records or not all(record.source for record in records.values()):
        return []
    return [msgspec.convert(msgspec.structs.asdict(r) | {"origin": "measured"}, Ceiling) for r in records.values()]


def record(ceiling: Ceiling) -> CeilingRecord:
    """A ceiling as the journal holds it."""
    facts = msgspec.structs.asdict(ceiling)
    return CeilingRecord(**{name: facts[name] for name in CeilingRecord.__struct_fields__})


class MachineCeilings:
    """The ceilings of a run, as they stand. Lanes call ``beside`` and ``raised`` from threads of their own."""

    def __init__(self, device: Device, table: Sequence[Ceiling]) -> None:
        self.known = Ceilings(device.name, tuple(table), device.last_level_cache_bytes)
        self._lock = threading.Lock()
        self._kept: tuple[str, measure.Sampler] | None = None

    def beside(self, op: str, case: Case, where: Device) -> dict[str, list[float]]:
        """Sample the ceiling that binds a case, on the device ``where``; nothing without room or calm."""
        roof = floors.binding(op, case, self.known)
        if roof is None or roof.origin != "measured":
            return {}
        name = roof.name
        if where.kind == "cpu" and name.startswith("dram") and 3 * probes.buffer_bytes(where) > MOST_BYTES:
            return {}
        try:
            if where.kind != "cpu":
                # a GPU's memory is the candidates'
                found = measure.Sampler(where, probes.of_roof(name, where)).visit()
                torch.cuda.empty_cache()
                return found
            if self._kept is None or self._kept[0] != name:
                self._kept = None
                self._kept = (name, measure.Sampler(where, probes.of_roof(name, where)))
            return self._kept[1].visit()
        except errors.DeviceError:
            return {}

    def raised(self, samples: Mapping[str, Sequence[float]]) -> list[Ceiling]:
        """Take samples from beside a race into the set; returns the ceilings that they raised."""
        with self._lock:
            now = [measure.pooled(c, samples[c.name]) if samples.get(c.name) else c for c in self.known.table]
            higher = [new for new, old in zip(now, self.known.table, strict=True) if new.value > old.value]
            self.known = Ceilings(self.known.device, tuple(now), self.known.cache_bytes)
        return higher
