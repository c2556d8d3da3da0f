"""The tab *Paper's figures*: figures 1b, 3, 4 and 8 and long contexts, from ``griffin roofline study --figure``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels.errors import ReportError
from reports.charts import paper_figures
from reports.page import Tab, figure, render
from reports.sources import SourceFile, source
from roofline.figures import agreeing
from roofline.figures_records import PaperFigure, PaperFigures, read
from roofline.figures_tables import merged

SIGNS = {"pass": ("ok", "✓"), "fail": ("wrong", "✕"), "cannot tell": ("slow", "?")}
"""Outcome -> class of the mark, and its sign."""


def load_figures(path: Path) -> tuple[SourceFile, PaperFigures, str]:
    """The record at ``path`` and its JSON on one line. Raises ReportError where it cannot be used."""
    found = read(path)
    for one in found.figures:
        names = {panel.name for panel in one.panels}
        for series in one.series:
            if series.panel not in names:
                raise ReportError(
                    f"{path} cannot be shown: figure {one.name} lacks panel {series.panel!r}; make it again"
                )
            values = [end for p in series.points for end in (p.x, *([] if p.y is None else [p.y]), *(p.interval or ()))]
            if not all(0 < value < math.inf for value in values):
                raise ReportError(
                    f"{path} cannot be shown: figure {one.name} has a value that is not above 0; make it again"
                )
    return source(path, path.read_bytes()), found, msgspec.json.encode(found).decode()


def figures_tab(found: PaperFigures, found_in: SourceFile, facts: Mapping[str, Any]) -> Tab:
    """The tab of a record. facts: of the device of the report that it is shown in."""
    validity = found.device.validity if found.device else None
    body = render(
        "paper_figures.html.j2", source=found_in, key=paper_figures.key,
        figures=[(one, _panels(one), _groups(one)) for one in found.figures],
        command=found.command, elsewhere=validity is not None and validity != facts, signs=SIGNS,
        machine=validity.get("name") if validity else None, text=paper_figures.value, name_of=paper_figures.name_of,
        date=found.device.provenance.get("date") if found.device else None,
    )  # fmt: skip
    return Tab("paper", "Paper's figures", body)


def _panels(one: PaperFigure) -> list[dict[str, Any]]:
    """Each panel with its chart and the rows of its table."""
    return [
        {"panel": panel, "chart": figure(paper_figures.panel(one, panel)), "rows": rows}
        | {"xs": sorted({point.x for series, _ in rows for point in series.points})}
        for panel in one.panels
        for rows in [merged(one.of_panel(panel.name))]
    ]


def _groups(one: PaperFigure) -> list[tuple[str, int]]:
    """Devices, origins and assumptions in words, and how many statements hold there."""
    return [
        (", ".join(part for part in (device, origin, assumption) if part), count)
        for device, origin, assumption, count in agreeing(one)
    ]
