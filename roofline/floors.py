"""Ops against the ceilings: which binds, how far a measured kernel is from it, and what fusing saves."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from griffin_kernels import catalog
from griffin_kernels.case import Case, Pass
from griffin_kernels.records import Entry
from roofline import shares
from roofline.ceilings import DISTURBED, Ceiling, Ceilings
from roofline.study_records import FusionRow, KernelFloor
from roofline.units import si

CACHE_REACH = 4
"""Of data up to so many times the last-level cache enough may stay there to be seen: a quarter, of which writes wait
for their turn."""


@dataclass(frozen=True)
class CeilingShare:
    """A time against the ceilings. floors_s: seconds under each, by roof name. bound: the one that binds, the longest.

    share: floor over time. above: why the share is above 1, in words; None where it is not.
    """

    bound: str
    share: float
    floors_s: dict[str, float]
    above: str | None


def judge(op: str, case: Case, seconds: float, ceilings: Ceilings) -> CeilingShare | None:
    """What binds an op at a case, and how near ``seconds`` comes to it; None where no ceiling is known for its work."""
    floors = op_floors(op, case, ceilings)
    if not floors:
        return None
    bound = max(floors, key=lambda name: floors[name])
    share = floors[bound] / seconds
    return CeilingShare(bound, share, floors, _why_above(op, case, bound, ceilings) if share > 1 else None)


def judged(entry: Entry, ceilings: Ceilings) -> Entry:
    """An entry with the share of these ceilings that its time reaches; one that was never run stays as it is."""
    found = None if entry.median_s is None else judge(entry.op, entry.case, entry.median_s, ceilings)
    if found is None:
        return entry
    return msgspec.structs.replace(entry, bound=found.bound, share_of_bound=found.share, above_bound=found.above)


def binding(op: str, case: Case, ceilings: Ceilings) -> Ceiling | None:
    """The entry of the table that binds an op at a case; None where no ceiling is known for its work."""
    floors = op_floors(op, case, ceilings)
    return ceilings.entry(max(floors, key=lambda name: floors[name]), case.dtype) if floors else None


def _why_above(op: str, case: Case, bound: str, ceilings: Ceilings) -> str:
    """Why a kernel is faster than its ceiling."""
    size, cache = catalog.op(op).cost(case).bytes_total, ceilings.cache_bytes
    if bound == "dram" and size <= CACHE_REACH * cache:
        return f"part of its {si(size, 'B')} probably stayed in the last-level cache of {si(cache, 'B')}"
    if bound == "cache":
        return shares.NEARER_CACHE
    roof = ceilings.entry(bound, case.dtype)
    if roof is not None and DISTURBED in roof.source:
        return "the ceiling is too low: other processes took the cores while it was measured"
    return shares.TOO_LOW


def op_floors(op: str, case: Case, ceilings: Ceilings) -> dict[str, float]:
    """Seconds that each ceiling alone would take for a case, by roof name; launches are left out."""
    cost = catalog.op(op).cost(case)
    return ceilings.slow(cost, case.dtype, cost.bytes_total, launches=0)


def kernel_floors(entries: Iterable[Entry], ceilings: Ceilings) -> list[KernelFloor]:
    """Measured registry entries against the ceilings, the one that loses most time first.

    Those that were never run are left out, and those that no ceiling is known for.
    """
    found = []
    for entry in entries:
        told = None if entry.median_s is None else judge(entry.op, entry.case, entry.median_s, ceilings)
        if entry.median_s is None or told is None:
            continue
        floor_s = told.floors_s[told.bound]
        cost = catalog.op(entry.op).cost(entry.case)
        floor = KernelFloor(
            op=entry.op, case=entry.case.key, variant=entry.variant,
            measured_s=entry.median_s, interval_s=entry.interval_s, floors_s=told.floors_s, bound=told.bound,
            share=told.share, lost_s=max(0.0, entry.median_s - floor_s), above=told.above,
            bytes=cost.bytes_total, tensor_flops=cost.tensor_flops, vector_flops=cost.vector_flops,
            special_ops=cost.special_ops,
        )  # fmt: skip
        found.append(floor)
    return sorted(found, key=lambda floor: -floor.lost_s)


def fusion_table(cases: Iterable[tuple[str, Case]], ceilings: Ceilings) -> list[FusionRow]:
    """What fusing saves at cases, each with its op, where that has an unfused form, a row of PyTorch's kernels."""
    rows = []
    for op, case in cases:
        name = f"griffin_kernels.ops.{op}.unfused"
        if importlib.util.find_spec(name) is None:
            continue
        passes: tuple[Pass, ...] = importlib.import_module(name).passes(case)
        one_by_one = [
            p.count * max(ceilings.slow(p.cost, case.dtype, p.cost.bytes_total, launches=0).values(), default=0.0)
            for p in passes
        ]
        row = FusionRow(
            what=op, case=case.key, fused_bytes=catalog.op(op).cost(case).bytes_total,
            unfused_bytes=sum(p.count * p.cost.bytes_total for p in passes), unfused_s=sum(one_by_one),
            unfused_launches=sum(p.count for p in passes),
            fused_s=max(op_floors(op, case, ceilings).values(), default=0.0),
        )  # fmt: skip
        rows.append(row)
    return rows
