"""Builds a report: one HTML file that needs nothing else, from a journal and a registry alone.

Nothing is measured again and no kernel is imported. Equal inputs give equal bytes.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

from griffin_kernels.errors import ReportError
from griffin_kernels.registry import write_atomically
from reports import format as fmt
from reports import model
from reports.charts import candidates, errors, race
from reports.journal import Source, load, load_registry
from tuning.budget import INDIFFERENCE

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Tab:
    """One page of the report. With a single one no tab bar is shown."""

    name: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Figure:
    """A plotly figure as JSON, and the height that the page keeps free for it."""

    json: Markup
    height: int


@dataclass(frozen=True)
class ForestRow:
    """Places of one speedup in a small picture 120 wide; all rows share one log scale."""

    one: float
    low: float
    high: float
    point: float


def _raw(value: float | None) -> str:
    """A number for sorting and CSV; empty where there is none."""
    return "" if value is None else repr(float(value))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bound": fmt.bound,
        "brief": fmt.brief,
        "case_marks": fmt.marks,
        "case_text": fmt.case,
        "config_text": fmt.config,
        "date": fmt.date,
        "duration": fmt.duration,
        "error": fmt.error,
        "fact": lambda value, name: fmt.fact(name, value),
        "fragment": fmt.fragment,
        "label": fmt.label,
        "percent_number": lambda value: f"{100 * value:.1f}",
        "plural": fmt.plural,
        "rate": fmt.rate,
        "ratio": fmt.ratio,
        "raw": _raw,
        "share": fmt.share,
        "size": fmt.size,
        "time": fmt.time,
        "time_in": fmt.time_in,
    }
    return environment


def _figure(spec: str | None) -> Figure | None:
    if spec is None:
        return None
    height = re.search(r'"height":(\d+)', spec)
    return Figure(Markup(spec), int(height[1]) if height else 0)


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


def tuning_tab(report: model.Report, registry_source: Source | None = None) -> Tab:
    """The tuning report proper."""
    cases, rows = report.cases, report.error_rows
    drawn = {
        case.anchor: {"candidates": _figure(candidates.candidates(case)), "race": _figure(race.race(case))}
        for case in cases
    }
    body = (
        _environment()
        .get_template("tuning.html.j2")
        .render(
            report=report,
            run=report.journal.run,
            starts=report.journal.starts,
            end=report.journal.end,
            device=device_name(report),
            device_kind=device_kind(report),
            head=report.headline,
            forest=_forest(cases),
            ceilings=report.journal.ceilings,
            figures=drawn,
            error_figures={op.name: _figure(errors.errors([r for r in rows if r.op == op.name])) for op in report.ops},
            device_facts=_facts(report.journal.run.device.validity),
            first_case=cases[0].anchor if cases else None,
            statuses=model.STATUSES,
            indifference=INDIFFERENCE,
            registry_source=registry_source,
        )
    )
    return Tab("tuning", "Tuning", Markup(body))


def _facts(values: dict[str, Any]) -> dict[str, Any]:
    """Facts without those that are zero because they do not apply, as a CPU's warp size."""
    return {name: value for name, value in values.items() if isinstance(value, bool) or value != 0}


def device_kind(report: model.Report) -> str:
    """Architecture and size of the device: ``x86-64-avx512, 2 cores``."""
    facts = report.journal.run.device.validity
    unit = "cores" if facts.get("kind") == "cpu" else "units"
    return ", ".join([str(facts["arch"])] * ("arch" in facts) + [f"{facts['units']} {unit}"] * ("units" in facts))


def device_name(report: model.Report) -> str:
    """The device as the driver or the operating system reports it."""
    return str(report.journal.run.device.validity.get("name") or "unnamed device")


def page(title: str, tabs: Sequence[Tab], data: str) -> str:
    """The whole HTML file. data: JSON, embedded for the page's script and for whoever wants the numbers."""
    parts: dict[str, Any] = {
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "report.js").read_text(encoding="utf-8"),
        "plotly": plotly.offline.get_plotlyjs(),
        "data": data.replace("<", "\\u003c"),
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(title=title, tabs=tabs, **{name: Markup(text) for name, text in parts.items()})
    )


def write_report(journal: Path, out: Path, registry: Path | None = None) -> Path:
    """Write the report of ``journal`` to ``out`` and return ``out``; an existing file is replaced in one step.

    Raises ReportError where the journal or the registry cannot be used, or ``out`` cannot be written. An unfinished
    run, and one without results, gives a report of what there is.
    """
    loaded = load(journal)
    registry_source, registry_file, registry_text = load_registry(registry) if registry else (None, None, "null")
    report = model.build(loaded, registry_file)
    name = json.dumps(loaded.source.name)
    data = (
        f'{{"format":"griffin-kernels report data 1","journal":{name},"sha256":"{loaded.source.sha256}",'
        f'"records":[{",".join(loaded.lines)}],"registry":{registry_text.strip()}}}'
    )
    title = f"Tuning report: {device_name(report)}, {fmt.date(loaded.run.date)}"
    text = page(title, [tuning_tab(report, registry_source)], data)
    _replace(out, text)
    return out


def _replace(out: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:  # OutputFolderError is one
        raise ReportError(f"cannot write the report {out}: {error.strerror or error}") from error
