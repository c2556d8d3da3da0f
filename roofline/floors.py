"""Ops against the ceilings: which binds, how far a measured kernel is from it, and what fusing saves."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from griffin_kernels import catalog
from griffin_kernels.case import Case, Pass
from griffin_kernels.records import Entry
from roofline.ceilings import Ceilings
from roofline.study_records import FusionRow, KernelFloor


def op_floors(op: str, case: Case, ceilings: Ceilings) -> dict[str, float]:
    """Seconds that each ceiling alone would take for a case, by roof name; launches are left out."""
    cost = catalog.op(op).cost(case)
    return ceilings.slow(cost, case.dtype, cost.bytes_total, launches=0)


def kernel_floor(entry: Entry, ceilings: Ceilings) -> KernelFloor | None:
    """A measured registry entry against the ceilings; None for one that was never run, or where no ceiling is known."""
    if entry.median_s is None:
        return None
    case = entry.case
    floors = op_floors(entry.op, case, ceilings)
    if not floors:
        return None
    bound = max(floors, key=lambda name: floors[name])
    cost = catalog.op(entry.op).cost(case)
    return KernelFloor(
        op=entry.op,
        case=case.key,
        variant=entry.variant,
        measured_s=entry.median_s,
        interval_s=entry.interval_s,
        floors_s=floors,
        bound=bound,
        share=floors[bound] / entry.median_s,
        lost_s=max(0.0, entry.median_s - floors[bound]),
        bytes=cost.bytes_total,
        tensor_flops=cost.tensor_flops,
        vector_flops=cost.vector_flops,
        special_ops=cost.special_ops,
    )


def kernel_floors(entries: Iterable[Entry], ceilings: Ceilings) -> list[KernelFloor]:
    """Every measured entry, the one that loses most time first."""
    found = [floor for entry in entries if (floor := kernel_floor(entry, ceilings)) is not None]
    return sorted(found, key=lambda floor: -floor.lost_s)


def composition(op: str, case: Case) -> tuple[Pass, ...] | None:
    """The PyTorch kernels that an op's unfused form is made of, or None for an op that has none."""
    name = f"griffin_kernels.ops.{op}.unfused"
    if importlib.util.find_spec(name) is None:
        return None
    passes: tuple[Pass, ...] = importlib.import_module(name).passes(case)
    return passes


def fusion_row(op: str, case: Case, ceilings: Ceilings) -> FusionRow | None:
    """What fusing an op saves at a case; None for an op without an unfused form."""
    passes = composition(op, case)
    if passes is None:
        return None
    cost = catalog.op(op).cost(case)
    one_by_one = [
        p.count * max(ceilings.slow(p.cost, case.dtype, p.cost.bytes_total, launches=0).values(), default=0.0)
        for p in passes
    ]
    return FusionRow(
        what=op,
        case=case.key,
        fused_bytes=cost.bytes_total,
        unfused_bytes=sum(p.count * p.cost.bytes_total for p in passes),
        unfused_launches=sum(p.count for p in passes),
        fused_s=max(op_floors(op, case, ceilings).values(), default=0.0),
        unfused_s=sum(one_by_one),
    )


def fusion_table(cases: Iterable[tuple[str, Case]], ceilings: Ceilings) -> list[FusionRow]:
    """Rows for cases, each with its op, where that has an unfused form."""
    return [row for op, case in cases if (row := fusion_row(op, case, ceilings)) is not None]
