"""Builds a report: one HTML file that needs nothing else, from a journal, a registry and a roofline study alone.

Nothing is measured again and no kernel is imported. Equal inputs give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels.errors import ReportError
from griffin_kernels.registry import write_atomically
from griffin_kernels.texts import encodable
from reports import format as fmt
from reports import model
from reports.charts import tuning as charts
from reports.forward_tab import forward_tab
from reports.page import Tab, figure, page, render
from reports.roofline_tab import roofline_tab
from reports.sources import SourceFile, beside, load, load_registry, load_study
from reports.static_tab import static_tab
from tuning.plan.budget import INDIFFERENCE
from tuning.static import recorded
from tuning.static.recorded import Recorded


@dataclass(frozen=True)
class ForestRow:
    """Places of one speedup in a small picture 120 wide; all rows share one log scale."""

    one: float
    low: float
    high: float
    point: float


def _forest(cases: Sequence[model.CaseView]) -> dict[str, ForestRow]:
    """Where each speedup and its interval lie, from the smallest to the largest of all rows and 1x."""
    found = {
        case.anchor: (*case.entry.speedup_interval, case.entry.speedup)
        for case in cases
        if case.entry and case.entry.speedup and case.entry.speedup_interval and min(case.entry.speedup_interval) > 0
    }
    values = [math.log(value) for row in found.values() for value in row]
    left, right = min([0.0, *values]), max([0.0, *values])
    width = max(right - left, 0.1)

    def place(value: float) -> float:
        return round(6 + 108 * (math.log(value) - left) / width, 1)

    return {
        anchor: ForestRow(place(1.0), place(low), place(high), place(point))
        for anchor, (low, high, point) in found.items()
    }


def tuning_tab(
    report: model.Report, registry_source: SourceFile | None = None, study_source: SourceFile | None = None
) -> Tab:
    """The tuning report proper."""
    cases, rows = report.cases, report.error_rows
    drawn = {
        case.anchor: {"candidates": figure(charts.candidates(case)), "race": figure(charts.race(case))}
        for case in cases
    }
    body = render(
        "tuning.html.j2",
        report=report,
        device=device_name(report),
        device_kind=fmt.device_kind(report.journal.run.device.validity),
        forest=_forest(cases),
        figures=drawn,
        error_figures={op.name: figure(charts.errors([r for r in rows if r.op == op.name])) for op in report.ops},
        device_facts=_facts(report.journal.run.device.validity),
        first_case=cases[0].anchor if cases else None,
        statuses=model.STATUSES,
        indifference=INDIFFERENCE,
        registry_source=registry_source,
        study_source=study_source,
    )
    return Tab("tuning", "Tuning", body)


def _facts(values: dict[str, Any]) -> dict[str, Any]:
    """Facts without those that are zero because they do not apply, as a CPU's warp size."""
    return {name: value for name, value in values.items() if isinstance(value, bool) or value != 0}


def device_name(report: model.Report) -> str:
    """The device as the driver or the operating system reports it."""
    return str(report.journal.run.device.validity.get("name") or "unnamed device")


def write_report(journal: Path, out: Path, registry: Path | None = None, study: Path | None = None) -> Path:
    """Write the report of ``journal`` to ``out`` and return ``out``; an existing file is replaced in one step.

    study: the roofline study; one that lies beside the journal is found by itself. With one there are tabs for the
    roofline and for forward passes.
    Raises ReportError where the journal, the registry or the study cannot be used, or ``out`` cannot be written. An
    unfinished run, and one without results, gives a report of what there is.
    """
    loaded = load(journal)
    registry_source, registry_file, registry_text = load_registry(registry) if registry else (None, None, "null")
    study = study or beside(journal)
    study_source, found, study_text = load_study(study) if study else (None, None, "null")
    report = model.build(loaded, registry_file)
    name = json.dumps(loaded.source.name)
    data = (
        f'{{"format":"griffin-kernels report data 1","journal":{name},"sha256":"{loaded.source.sha256}",'
        f'"records":[{",".join(loaded.lines)}],"registry":{registry_text.strip()},"study":{study_text}}}'
    )
    title = f"Tuning report: {device_name(report)}, {fmt.date(loaded.run.date)}"
    tabs = [tuning_tab(report, registry_source, study_source)]
    if found is not None:
        tabs += [roofline_tab(found, report), forward_tab(found)]
    tabs.append(static_tab(static_table()))
    replace(out, page(title, tabs, data))
    return out


def static_table() -> Recorded:
    """The table of compiled kernels that the package carries."""
    try:
        return recorded.load()
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"cannot read the table of compiled kernels {recorded.FILE}: {error}") from error


def replace(out: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, encodable(text).encode())
    except OSError as error:  # OutputFolderError is one
        raise ReportError(f"cannot write the report {out}: {error.strerror or error}") from error
