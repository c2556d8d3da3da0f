"""The tabs of a report: *Tuning*, *Roofline*, *Forward passes* and *GPU code*, each a template filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from griffin_kernels.case import Case
from griffin_kernels.errors import ArgumentError
from reports import format as fmt
from reports import forward_text as words
from reports import model
from reports.charts import forward_lines, forward_passes, roofline, tuning
from reports.forward_model import PageView
from reports.page import Tab, figure, render
from reports.roofline_model import ROOFS, RooflineView, ceiling_rate, roof_name, roof_work
from reports.sources import SourceFile
from roofline.study_records import REGIMES, Study
from roofline.work import LENGTH_IS
from tuning.plan.budget import INDIFFERENCE
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


def tuning_tab(
    report: model.Report, registry_source: SourceFile | None = None, study_source: SourceFile | None = None
) -> Tab:
    """The tuning report proper."""
    cases, rows, facts = report.cases, report.error_rows, report.journal.run.device.validity
    body = render(
        "tuning.html.j2", report=report, device_kind=fmt.device_kind(facts), forest=_forest(cases),
        figures={c.anchor: {"candidates": figure(tuning.candidates(c)), "race": figure(tuning.race(c))} for c in cases},
        error_figures={op: figure(tuning.errors([r for r in rows if r.op == op])) for op in report.ops},
        # without those that are zero because they do not apply, as a CPU's warp size
        device_facts={name: value for name, value in facts.items() if isinstance(value, bool) or value != 0},
        first_case=cases[0].anchor if cases else None, statuses=model.STATUSES, indifference=INDIFFERENCE,
        registry_source=registry_source, study_source=study_source,
    )  # fmt: skip
    return Tab("tuning", "Tuning", body)


def _forest(cases: Sequence[model.CaseView]) -> dict[str, dict[str, float]]:
    """Places of 1x, each speedup and its interval in a picture 120 wide, on one log scale from the smallest of all."""
    found = {
        case.anchor: {"low": entry.speedup_interval[0], "high": entry.speedup_interval[1], "point": entry.speedup}
        for case in cases
        if (entry := case.entry) and entry.speedup and entry.speedup_interval and min(entry.speedup_interval) > 0
    }
    values = [math.log(value) for row in found.values() for value in row.values()]
    left, right = min([0.0, *values]), max([0.0, *values])
    width = max(right - left, 0.1)

    def place(value: float) -> float:
        return round(6 + 108 * (math.log(value) - left) / width, 1)

    return {a: {"one": place(1.0)} | {n: place(value) for n, value in row.items()} for a, row in found.items()}


def roofline_tab(study: Study, report: model.Report) -> Tab:
    """The tab of a study's ceilings, kernels and fusion; ``report``: where its kernels' cases are found."""
    view = RooflineView(study, (case.anchor for case in report.cases))
    facts = study.device.validity
    body = render(
        "roofline.html.j2", view=view, kind=fmt.device_kind(facts),
        others=view.others(report.journal.ceilings), elsewhere=facts != report.journal.run.device.validity,
        date=study.device.provenance.get("date"),
        roofline_figure=figure(roofline.roofline(view)), times_figure=figure(roofline.times(view)),
        rows_figure=figure(roofline.matmul_rows(view)), shown=roofline.MOST,
        roof_name=roof_name, roof_work=roof_work, ceiling_rate=ceiling_rate, definitions=ROOFS.values(),
    )  # fmt: skip
    return Tab("roofline", "Roofline", body)


def forward_tab(study: Study) -> Tab:
    """The tab of a study's forward passes: whole models, predicted and, where they were run, measured."""
    pages = [(view, _charts(view)) for view in (PageView(page, index) for index, page in enumerate(study.pages))]
    body = render("forward.html.j2", pages=pages, words=words, regimes=REGIMES, length_is=LENGTH_IS)
    return Tab("forward", "Forward passes", body)


def _charts(view: PageView) -> dict[str, Any]:
    """The charts of a device, by name. first: the pass whose waterfall is shown at first."""
    accuracy, batch = view.accuracy, view.common("batch")
    # or the largest of the grid that a pass in detail has
    studied = max([batch, *({record.batch for record in view.passes} & set(view.batches))])

    def picks(axis: str, name: str, draw: Callable[[int], str | None], chosen: int) -> list[dict[str, Any]]:
        """Charts that a select box shows one of, for each value of ``axis``. id: of the panel."""
        return [
            {"id": f"{view.id}-{name}-{value}", "label": words.number_of(axis, value), "value": value, "figure": drawn}
            | {"chosen": value == chosen}
            for value in view.values[axis]
            if (drawn := figure(draw(value))) is not None
        ]

    maps = {phase: figure(forward_passes.regimes(view, phase)) for phase in view.phases}
    return {
        "kinds": [figure(forward_passes.kinds(found)) for found in view.passes],
        "layers": [figure(forward_passes.layers(found)) for found in view.passes],
        "first": accuracy.worst if accuracy else next(iter(view.passes), None),
        "over_seq": picks("batch", "at-batch", lambda value: forward_lines.speed(view, "seq", value), batch),
        "over_batch": picks("seq", "at-length", lambda v: forward_lines.speed(view, "batch", v), view.common("seq")),
        "memory": picks("batch", "memory-batch", lambda value: forward_lines.memory(view, value), studied),
        "regimes": {phase: drawn for phase, drawn in maps.items() if drawn is not None},
    }


def static_tab(found: Recorded, first: str = "sm_90") -> Tab:
    """The tab of a recorded table: registers, spills and instructions of Triton kernels, as compiled and not run.

    first: the architecture that is shown first, if it is there.
    """
    names = sorted({r.target for r in found.reports}, key=lambda name: [*TARGETS, name].index(name))
    pages: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for r in found.reports:
        # widest: bits per thread of the widest global load; 0 where only tensor memory accelerators load
        pages[r.target].append({"record": r, "case": case_named(r), "widest": max(r.load_bits, default=0)})
    body = render(
        "static.html.j2", found=found, pages=pages, gpus=TARGETS,
        first=first if first in pages else next(iter(pages), None),
        kernels={(r.op, r.variant, r.kernel) for r in found.reports},
        variants={(r.op, r.variant) for r in found.reports},
        spilling=[r for r in found.reports if r.spill_bytes],
        serialised=[r for r in found.reports if r.serialised],
        broken=[r for r in found.reports if r.broken],
    )  # fmt: skip
    return Tab("gpu-code", "GPU code", body)


def case_named(report: StaticReport) -> Case | None:
    """The case that a key names, as the page shows cases; None for a key that is none, or of an op not known here."""
    try:
        return Case.parse(report.op, report.case)
    except ArgumentError:
        return None
