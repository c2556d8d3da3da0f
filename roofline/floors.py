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


def kernel_floors(entries: Iterable[Entry], ceilings: Ceilings) -> list[KernelFloor]:
    """Measured registry entries against the ceilings, the one that loses most time first.

    Those that were never run are left out, and those that no ceiling is known for.
    """
    found = []
    for entry in entries:
        floors = op_floors(entry.op, entry.case, ceilings)
        if entry.median_s is None or not floors:
            continue
        bound = max(floors, key=lambda name: floors[name])
        cost = catalog.op(entry.op).cost(entry.case)
        floor = KernelFloor(
            op=entry.op, case=entry.case.key, variant=entry.variant,
            measured_s=entry.median_s, interval_s=entry.interval_s, floors_s=floors, bound=bound,
            share=floors[bound] / entry.median_s, lost_s=max(0.0, entry.median_s - floors[bound]),
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
