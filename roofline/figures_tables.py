"""The paper's figures as terminal tables: a table for each panel, statements with the numbers that decided."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs
from rich.console import Console

from roofline.console import line, table
from roofline.figures import agreeing
from roofline.figures_records import FigurePoint, FigureSeries, PaperFigure, Quantity
from roofline.tables import SHORT
from roofline.units import gib, seconds_text, si

STYLES = {"pass": "green", "fail": "red", "cannot tell": "yellow"}


def show_figure(console: Console, figure: PaperFigure) -> None:
    """One figure: panels, statements, what they rest on."""
    line(console, f"Figure {figure.name}: {figure.title}, over {figure.x}; {figure.fixed}", "bold")
    for panel in figure.panels:
        members = figure.of_panel(panel.name)
        xs = sorted({point.x for series in members for point in series.points})
        shown = table(["model", "device", "", "assumption"], [f"{x:g}" for x in xs], title=f"{panel.title}: {panel.y}")
        for series, assumptions in merged(members):
            by_x = {point.x: point for point in series.points}
            cells = [_cell(by_x.get(x), panel.quantity, figure.name == "1b") for x in xs]
            shown.add_row(_named(series), series.device, series.origin, " or ".join(assumptions), *cells)
        console.print(shown, highlight=False)
    used = dict.fromkeys(point.bound for series in figure.series for point in series.points if point.bound)
    if used:
        line(console, "bound by: " + ", ".join(f"{SHORT[name]} {name}" for name in used), "dim")
    for note in dict.fromkeys(series.note for series in figure.series if series.note):
        line(console, f"on the CPU: {note}", "yellow")
    show_claims(console, figure)
    for assumption in figure.assumptions:
        line(console, f"- {assumption.name}: {assumption.words}", "dim")
    for device in figure.devices:
        for sentence in device.assumptions:
            line(console, f"- {device.name}: {sentence}", "dim")
    line(console, "")


def merged(members: Iterable[FigureSeries]) -> list[tuple[FigureSeries, list[str]]]:
    """Each series with the assumptions that give it: those with equal points are one."""
    found: list[tuple[FigureSeries, list[str]]] = []
    for series in members:
        for other, assumptions in found:
            if structs.replace(series, assumption=other.assumption) == other:
                assumptions.append(series.assumption)
                break
        else:
            found.append((series, [series.assumption]))
    return found


def show_claims(console: Console, figure: PaperFigure) -> None:
    """Each statement with its outcomes; at the end, under what most of them hold."""
    for claim in figure.claims:
        line(console, f"The text says ({claim.where}): {claim.statement}. Here: {claim.criterion}.")
        for found in claim.judgements:
            where = ", ".join(part for part in (found.device, found.origin, found.assumption) if part)
            line(console, f"  {found.outcome:11} {where}: {found.why}", STYLES[found.outcome])
    for device, origin, assumption, count in agreeing(figure):
        where = ", ".join(part for part in (device, origin, assumption) if part)
        line(console, f"{count} of {len(figure.claims)} statements hold: {where}")


def _named(series: FigureSeries) -> str:
    return series.label if not series.parameters else f"{series.label} ({series.model}, {si(series.parameters)})"


def _cell(point: FigurePoint | None, quantity: Quantity, with_batch: bool) -> str:
    if point is None:
        return ""
    if point.y is None:
        return "does not fit" if with_batch else "-"
    texts = {
        "tokens/s": lambda y: si(y), "s": seconds_text, "ratio": lambda y: f"{y:.3f}", "bytes": gib,
    }  # fmt: skip
    told = texts[quantity](point.y)
    return " ".join(
        part for part in (told, SHORT.get(point.bound, ""), f"B{point.batch}" if with_batch else "") if part
    )
