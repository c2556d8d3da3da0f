"""The tab *GPU code*: registers, spills and instructions of every Triton kernel, as compiled and not run."""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.case import Case
from griffin_kernels.errors import ArgumentError
from reports.page import Tab, render
from tuning.static.recorded import Recorded, StaticReport

TARGETS = {
    "sm_75": "T4, RTX 20",
    "sm_80": "A100",
    "sm_86": "A10, RTX 30",
    "sm_89": "L4, L40S, RTX 40",
    "sm_90": "H100, H200",
    "sm_100": "B200",
    "sm_120": "RTX 50",
    "gfx90a": "MI200",
    "gfx942": "MI300",
    "gfx950": "MI350",
}
"""Architectures -> GPUs that have them. Others are shown by their name alone."""

FIRST = "sm_90"


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one architecture. case: as the page shows cases; None where the op is not known here."""

    record: StaticReport
    case: Case | None

    @property
    def widest(self) -> int:
        """Bits per thread of the widest global load; 0 where only tensor memory accelerators load."""
        return max(self.record.load_bits, default=0)


def static_tab(found: Recorded, first: str = FIRST) -> Tab:
    """The tab of a recorded table. first: the architecture that is shown first, if it is there."""
    names = sorted({r.target for r in found.reports}, key=lambda name: [*TARGETS, name].index(name))
    pages = {name: [Row(r, _case(r)) for r in found.reports if r.target == name] for name in names}
    body = render(
        "static.html.j2",
        found=found,
        pages=pages,
        gpus=TARGETS,
        first=first if first in pages else next(iter(pages), None),
        kernels={(r.op, r.variant, r.kernel) for r in found.reports},
        variants={(r.op, r.variant) for r in found.reports},
        spilling=[r for r in found.reports if r.spill_bytes],
        serialised=[r for r in found.reports if r.serialised],
        broken=[r for r in found.reports if r.broken],
    )
    return Tab("gpu-code", "GPU code", body)


def _case(report: StaticReport) -> Case | None:
    """The case that a key names; None for a key that is none."""
    try:
        return Case.parse(report.op, report.case)
    except ArgumentError:
        return None
