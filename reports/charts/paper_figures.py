"""Charts of the paper's figures: lines by model, a band between two assumptions, measured marks filled."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from reports import format as fmt
from reports import forward_text as words
from reports.charts import plot
from reports.charts.forward_lines import SYMBOLS, Ticks, rate_ticks, size_ticks, time_ticks
from roofline.figures_records import FigurePanel, FigurePoint, FigureSeries, Origin, PaperFigure, Quantity

ROLES = {
    "Hawk": 0, "Griffin": 1, "MQA": 2, "Linear scan kernel": 0, "Native scan": 2, "Associative scan": 1,
}  # fmt: skip
"""What a line shows -> its place among the colours and symbols, the same in every figure."""

HEIGHT = 330
"""Pixels of a chart. What its lines mean is below all charts of a figure."""


def value(y: float | None, quantity: Quantity) -> str:
    """A value as people read it; what does not fit has none."""
    if y is None:
        return fmt.MISSING
    if quantity == "s":
        return fmt.time(y)
    if quantity == "bytes":
        return fmt.size(round(y))
    return fmt.significant(y) if quantity == "ratio" else fmt.decimal(y, "").strip()


def panel(figure: PaperFigure, shown: FigurePanel) -> str | None:
    """The chart of a panel; None where no series has a value."""
    members = [series for series in figure.of_panel(shown.name) if any(p.y is not None for p in series.points)]
    if not members:
        return None
    machines = machines_of(figure)
    traces: list[Any] = []
    for lines in _bands(members):
        place = machines.index((lines[0].device, lines[0].origin))
        traces += [_band(lines)] if len(lines) > 1 else []
        traces += [_line(series, shown.quantity, place) for series in lines]
    xs = sorted({point.x for series in members for point in series.points})
    ys = [end for series in members for point in series.points if point.y for end in (point.y, *(point.interval or ()))]
    layout = plot.framed(HEIGHT, 50, 50) | {"xaxis": _across(xs, figure.x), "yaxis": _up(ys, shown)}
    left = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 6}
    head = plot.two_lines(shown.title, shown.y, 50)
    layout["annotations"] = [plot.note("facet", head, align="left", **left)]
    return plot.to_json(traces, layout | {"showlegend": False})


def machines_of(figure: PaperFigure) -> list[tuple[str, Origin]]:
    """Devices, predicted and measured, in the order of their dashes."""
    return list(dict.fromkeys((series.device, series.origin) for series in figure.series))


DASHES = {"solid": "none", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "14 6",
          "longdashdot": "14 5 2 5"}  # fmt: skip
"""Plotly's dashes as SVG writes them."""


def key(figure: PaperFigure) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """What lines mean: (role, label, models) of colours, and (dash, device and origin, note) of dashes."""
    models: dict[str, dict[str, None]] = {}
    for series in figure.series:
        models.setdefault(series.label, {})[series.model] = None
    colours = [(f"series{ROLES.get(label, 3)}", label, ", ".join(names)) for label, names in models.items()]
    dashes = []
    for place, (device, origin) in enumerate(machines_of(figure)):
        notes = dict.fromkeys(s.note for s in figure.series if (s.device, s.origin) == (device, origin) and s.note)
        dashes.append((DASHES[plot.dash(place)], f"{device}, {origin}", "; ".join(notes)))
    return colours, dashes


def _bands(members: Sequence[FigureSeries]) -> list[list[FigureSeries]]:
    """Series of one model, device and origin together: those under different assumptions, if they differ."""
    groups: dict[tuple[str, str, str, str], list[FigureSeries]] = {}
    for series in members:
        lines = groups.setdefault((series.label, series.model, series.device, series.origin), [])
        if all(series.points != other.points for other in lines):
            lines.append(series)
    return list(groups.values())


def _role(series: FigureSeries) -> str:
    return f"series{ROLES.get(series.label, 3)}"


def name_of(series: FigureSeries) -> str:
    """``MQA (mqa-100m), cpu, measured``: a line by its model and machine."""
    model = f"{series.label} ({series.model})" if series.model != series.label else series.label
    return f"{model}, {series.device}, {series.origin}"


def _band(lines: Sequence[FigureSeries]) -> Any:
    """The area between the ends of an assumption."""
    ends = [[point for point in series.points if point.y is not None] for series in (lines[0], lines[-1])]
    around = [*ends[0], *reversed(ends[1])]
    return plot.scatter(
        _role(lines[0]), [p.x for p in around], [plot.short(p.y or 0.0) for p in around], None, "lines",
        fill="toself", line={"width": 0}, opacity=0.3,
    )  # fmt: skip


def _line(series: FigureSeries, quantity: Quantity, place: int) -> Any:
    points = [point for point in series.points if point.y is not None]
    ys = [plot.short(point.y or 0.0) for point in points]
    symbol = SYMBOLS[ROLES.get(series.label, 3)]
    measured = series.origin == "measured"
    style: dict[str, Any] = {
        "marker": plot.mark(symbol if measured else f"{symbol}-open", 9 if measured else 7, 1.5),
        "line": {"width": 2, "dash": plot.dash(place)},
    }
    if measured:
        style["error_y"] = plot.whiskers(ys, [point.interval for point in points])
    return plot.scatter(
        _role(series), [point.x for point in points], ys, [_hover(series, point, quantity) for point in points],
        "lines+markers", name=html.escape(name_of(series)), **style,
    )  # fmt: skip


def _hover(series: FigureSeries, point: FigurePoint, quantity: Quantity) -> str:
    ends = "" if point.interval is None else f", 95% {' to '.join(value(end, quantity) for end in point.interval)}"
    return plot.text(
        name_of(series),
        f"{value(point.y, quantity)}{ends}",
        f"batch {fmt.count(point.batch)}, {fmt.count(point.seq)} tokens each",
        series.assumption,
        f"bound by {words.regime(point.bound)}" if point.bound else "",
        series.note,
    )


def _across(xs: Sequence[float], title: str) -> dict[str, Any]:
    places = xs if len(xs) <= 6 else plot.log_places(min(xs), max(xs), 6)
    texts = [f"{round(x) >> 20}M" if x % 2**20 == 0 else words.short_count(round(x)) for x in places]
    scale = plot.log_scale(min(xs) / 1.2, max(xs) * 1.2, places, texts)
    return scale | plot.titled(f"{html.escape(title)}; 1K = 1024", 6) | plot.SMALL_TICKS


def _up(ys: Sequence[float], shown: FigurePanel) -> dict[str, Any]:
    if shown.quantity == "ratio" and max(ys) <= 5 * min(ys):
        return {"rangemode": "tozero", "automargin": True}
    low, high = min(ys) / 1.3, max(ys) * 1.3
    ticks: dict[Quantity, Ticks] = {
        "s": time_ticks(low, high), "tokens/s": rate_ticks(low, high), "bytes": size_ticks(low, high),
        "ratio": _ratio_ticks(low, high),
    }  # fmt: skip
    return plot.log_scale(low, high, *ticks[shown.quantity]) | {"automargin": True}


def _ratio_ticks(low: float, high: float) -> Ticks:
    values = plot.log_places(low, high, 7, plot.STEPS)
    return values, [plot.bare(fmt.significant(value)) for value in values]
