"""Charts over length and batch: latency, tokens per second and memory of every model, predicted and measured."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports import forward_text as words
from reports.charts.common import LEGEND_ON_TOP, bare, facet_title, short, text, to_json
from reports.forward_model import PageView
from roofline.pass_records import GridPoint, PassRecord

SYMBOLS = ("circle", "diamond", "square", "triangle-up")
"""Of models, filled where measured and open where predicted."""

FACET_PIXELS = 260
AXIS_TITLES = {"batch": "batch (sequences)", "seq": "length (tokens; 1K = 1024)"}


def series(place: int) -> str:
    """Role of a model's line, by the model's place."""
    return f"series{place % len(SYMBOLS)}"


def speed(view: PageView, axis: str, fixed: int) -> str | None:
    """Latency and tokens per second along ``batch`` or ``seq``, prefill above decode; the other size is ``fixed``."""
    if not any(view.line(model, phase, axis, fixed) for model in view.models for phase in view.phases):
        return None
    traces: list[Any] = []
    layout = _layout(len(view.phases))
    for row, phase in enumerate(view.phases):
        shown: tuple[list[float], list[float]] = ([], [])
        for place, model in enumerate(view.models):
            line = view.line(model, phase, axis, fixed)
            runs = view.measured(model, phase, axis, fixed)
            for column, value in enumerate((_latency, _rate)):
                anchor = 2 * row + column + 1
                first = row == 0 and column == 0
                shown[column].extend(value(p) for p in line)
                shown[column].extend(v.seconds if column == 0 else v.rate for v in runs)
                traces += _predicted(line, axis, value, model, place, anchor, first, _point_hover)
                if runs:
                    traces.append(_measured(runs, axis, column, place, anchor))
        for column, found in enumerate(shown):
            what = f"{('latency', 'tokens/s')[column]}, {words.number_of('seq' if axis == 'batch' else 'batch', fixed)}"
            ticks = between(*_ends(found), (time_label, _rate_label)[column])
            _facet(layout, 2 * row + column + 1, _axis(view, axis), axis, found, ticks, len(view.phases))
            _title(layout, 2 * row + column + 1, f"{words.PHASE_NAMES[phase]}: {what}")
    return to_json(traces, layout)


def memory(view: PageView, batch: int) -> str | None:
    """Weights and cache over length at a batch, the device's memory; beside it the largest batch that fits."""
    phase = next(iter(view.memory_phases), None)
    if phase is None or not any(view.line(model, phase, "seq", batch) for model in view.models):
        return None
    columns = 2 if view.device_bytes else 1
    layout = _layout(1, FACET_PIXELS + 60)
    traces: list[Any] = []
    sizes: list[float] = [float(view.device_bytes)] if view.device_bytes else []
    batches: list[float] = []
    for place, model in enumerate(view.models):
        line = view.line(model, phase, "seq", batch)
        sizes += [float(size) for p in line for size in (p.cache_bytes, p.weight_bytes) if size]
        traces += _predicted(line, "seq", _cache, model, place, 1, True, _memory_hover, "cache")
        traces.append(
            go.Scatter(
                x=[p.seq for p in line], y=[p.weight_bytes for p in line], mode="lines", name="weights",
                meta=series(place), line={"dash": "dash", "width": 1.5}, showlegend=False, xaxis="x", yaxis="y",
                hovertext=[text(model, f"weights {fmt.size(p.weight_bytes)}") for p in line], hoverinfo="text",
            )
        )  # fmt: skip
        fitting = [(seq, found) for seq in view.seqs if (found := view.largest_batch(model, seq))]
        if columns == 2 and fitting:
            batches += [float(found) for _, found in fitting]
            told = [text(model, f"{words.work(phase, seq)}: batch {fmt.count(found)}") for seq, found in fitting]
            traces.append(
                go.Scatter(
                    x=[seq for seq, _ in fitting], y=[found for _, found in fitting], mode="lines+markers",
                    name=html.escape(model), meta=series(place), showlegend=False, xaxis="x2", yaxis="y2",
                    marker={"symbol": f"{SYMBOLS[place % 4]}-open", "size": 8, "line": {"width": 1.5}},
                    line={"width": 2}, hoverinfo="text", hovertext=told,
                )
            )  # fmt: skip
    sizes.append(3 * max(sizes))  # room for a label above the highest line
    _facet(layout, 1, view.seqs, "seq", sizes, size_ticks(*_ends(sizes)), 1, columns)
    _title(layout, 1, f"Cache at batch {fmt.count(batch)}, and weights (dashed)")
    if columns == 2:
        _facet(layout, 2, view.seqs, "seq", batches, number_ticks(*_ends(batches)), 1, columns)
        _title(layout, 2, "Largest batch that fits")
        layout["shapes"] = [
            {"name": "roof", "type": "line", "xref": "x domain", "x0": 0, "x1": 1, "yref": "y",
             "y0": view.device_bytes, "y1": view.device_bytes, "line": {"width": 2, "dash": "dash"}}
        ]  # fmt: skip
        layout["annotations"].append(
            {"name": "roof", "text": f"memory of the device {fmt.size(view.device_bytes)}", "xref": "x domain",
             "x": 1, "xanchor": "right", "yref": "y", "y": math.log10(view.device_bytes), "yanchor": "bottom",
             "showarrow": False}
        )  # fmt: skip
    weights = {p.weight_bytes for model in view.models for p in view.line(model, phase, "seq", batch)}
    layout["annotations"].append(
        {"name": "label", "text": f"weights {' to '.join(map(fmt.size, sorted({min(weights), max(weights)})))}",
         "xref": "x domain", "x": 0, "xanchor": "left", "yref": "y", "y": math.log10(max(weights)),
         "yanchor": "bottom", "showarrow": False}
    )  # fmt: skip
    return to_json(traces, layout)


def _latency(point: GridPoint) -> float:
    return point.predicted_s


def _rate(point: GridPoint) -> float:
    return point.tokens_per_s


def _cache(point: GridPoint) -> float:
    return float(point.cache_bytes)


def _along(point: GridPoint, axis: str) -> int:
    return point.batch if axis == "batch" else point.seq


def _axis(view: PageView, axis: str) -> list[int]:
    return view.batches if axis == "batch" else view.seqs


def _predicted(
    line: Sequence[GridPoint],
    axis: str,
    value: Callable[[GridPoint], float],
    model: str,
    place: int,
    anchor: int,
    legend: bool,
    hover: Callable[[GridPoint], str],
    name: str = "",
) -> list[Any]:
    """A line with open marks; beyond what fits in memory it goes on dotted and without marks."""
    if not line:
        return []
    cut = next((index for index, point in enumerate(line) if point.fits is False), len(line))
    common = {"meta": series(place), "legendgroup": f"model{place}", "hoverinfo": "text"} | _axes(anchor)
    solid, dotted = line[:cut], line[max(0, cut - 1) :] if cut < len(line) else []
    traces = [
        go.Scatter(
            x=[_along(p, axis) for p in solid],
            y=[short(value(p)) for p in solid],
            mode="lines+markers",
            name=html.escape(f"{model} {name}".strip()),
            showlegend=legend,
            hovertext=[hover(p) for p in solid],
            marker={"symbol": f"{SYMBOLS[place % 4]}-open", "size": 7, "line": {"width": 1.5}},
            line={"width": 2},
            **common,
        )
    ]
    if dotted:
        traces.append(
            go.Scatter(
                x=[_along(p, axis) for p in dotted],
                y=[short(value(p)) for p in dotted],
                mode="lines",
                name=html.escape(f"{model}, does not fit"),
                showlegend=False,
                hovertext=[hover(p) for p in dotted],
                line={"width": 2, "dash": "dot"},
                **common,
            )
        )
    return traces


def _measured(runs: Sequence[PassRecord], axis: str, column: int, place: int, anchor: int) -> Any:
    """Filled marks with 95 % intervals."""
    values, lows, highs = [], [], []
    for record in runs:
        assert record.measured is not None
        low, high = record.measured.interval_s
        middle = record.seconds if column == 0 else record.rate
        ends = (low, high) if column == 0 else (record.tokens / high, record.tokens / low)
        values.append(short(middle))
        lows.append(short(middle - ends[0]))
        highs.append(short(ends[1] - middle))
    return go.Scatter(
        x=[record.batch if axis == "batch" else record.seq for record in runs],
        y=values,
        mode="markers",
        name="measured",
        meta=series(place),
        legendgroup=f"model{place}",
        showlegend=False,
        marker={"symbol": SYMBOLS[place % 4], "size": 11, "line": {"width": 1}},
        error_y={"type": "data", "symmetric": False, "array": highs, "arrayminus": lows, "thickness": 2, "width": 4},
        hovertext=[_measured_hover(record) for record in runs],
        hoverinfo="text",
        **_axes(anchor),
    )


def _point_hover(point: GridPoint) -> str:
    return text(
        words.label(point),
        f"predicted {fmt.time(point.predicted_s)}, {fmt.decimal(point.tokens_per_s, 'tokens/s')}",
        f"bound by {words.regime(point.regime)}",
        "does not fit in memory" if point.fits is False else "",
    )


def _memory_hover(point: GridPoint) -> str:
    return text(
        words.label(point),
        f"cache {fmt.size(point.cache_bytes)}, weights {fmt.size(point.weight_bytes)}",
        f"needs {fmt.size(point.needed_bytes)} in all" + (": does not fit" if point.fits is False else ""),
    )


def _measured_hover(record: PassRecord) -> str:
    measured = record.measured
    assert measured is not None
    low, high = measured.interval_s
    return text(
        words.label(record),
        f"measured {fmt.time(measured.median_s)}, 95% {fmt.time(low)} to {fmt.time(high)}",
        fmt.decimal(record.rate, "tokens/s"),
        f"predicted {fmt.time(record.predicted_s)}, off by {words.signed(record.error)}",
    )


def _axes(anchor: int) -> dict[str, str]:
    return {} if anchor == 1 else {"xaxis": f"x{anchor}", "yaxis": f"y{anchor}"}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=1.0), max(values, default=10.0)
    return low / 1.3, high * 1.3


def _layout(rows: int, pixels: int = FACET_PIXELS) -> dict[str, Any]:
    return {
        "height": 64 + pixels * rows,
        "margin": {"l": 10, "r": 10, "t": 64, "b": 50},
        "showlegend": True,
        "legend": LEGEND_ON_TOP,
        "annotations": [],
    }


def _facet(
    layout: dict[str, Any],
    anchor: int,
    xs: Sequence[int],
    axis: str,
    values: Sequence[float],
    ticks: tuple[list[float], list[str]],
    rows: int,
    columns: int = 2,
) -> None:
    """Axes number ``anchor``, counted along rows."""
    row, column = divmod(anchor - 1, columns)
    number = "" if anchor == 1 else str(anchor)
    gap = 0.3 / rows if rows > 1 else 0.0
    tall = (1 - gap * (rows - 1)) / rows
    top = 1 - row * (tall + gap)
    left, right = (0.0, 1.0) if columns == 1 else ((0.0, 0.44), (0.56, 1.0))[column]
    low, high = _ends(values)
    layout[f"xaxis{number}"] = {
        "type": "log",
        "domain": [left, right],
        "anchor": f"y{number}",
        "range": [math.log10(min(xs) / 1.25), math.log10(max(xs) * 1.25)],
        "tickvals": list(xs),
        "ticktext": [words.short_count(x) for x in xs] if axis == "seq" else [str(x) for x in xs],
        "tickangle": 0,
        "tickfont": {"size": 11},
        "title": {"text": AXIS_TITLES[axis], "standoff": 6},
    }
    layout[f"yaxis{number}"] = {
        "type": "log",
        "domain": [max(0.0, top - tall), min(1.0, top)],
        "anchor": f"x{number}",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks[0],
        "ticktext": ticks[1],
        "automargin": True,
    }


def _title(layout: dict[str, Any], anchor: int, title: str) -> None:
    number = "" if anchor == 1 else str(anchor)
    layout["annotations"].append(facet_title(number, title, 4))


def _ticks(low: float, high: float, base: float, write: Callable[[float], str]) -> tuple[list[float], list[str]]:
    """Powers of ``base`` within the ends, thinned to at most eight."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    step = max(1, -(-(last - first + 1) // 8))
    values = [float(base) ** power for power in range(first, last + 1, step)]
    return values, [write(value) for value in values]


def between(low: float, high: float, write: Callable[[float], str]) -> tuple[list[float], list[str]]:
    """Round values within the ends, at most seven, as close as that allows."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for steps in ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [step * 10.0**decade for decade in decades for step in steps]
        values = [value for value in values if low <= value <= high]
        if len(values) <= 7:
            break
    return values, [write(value) for value in values]


def time_label(value: float) -> str:
    return bare(fmt.time(value))


def _rate_label(value: float) -> str:
    return bare(fmt.decimal(value, "")).strip()


def size_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Bytes at powers of 4, 1 KiB among them."""
    return _ticks(low, high, 4, lambda value: bare(fmt.size(round(value))))


def number_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Whole numbers at powers of 10, or of 2 where these are few."""
    return _ticks(max(low, 1.0), high, 10 if high > 100 * max(low, 1.0) else 2, lambda value: fmt.count(round(value)))
