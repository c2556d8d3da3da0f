"""Figures of the tuning report, as plotly JSON without colours.

Every trace carries its role in ``meta``, and every shape and annotation in ``name``; the page colours them by role, so
one figure serves light, dark and print. Shape and place say the same as colour. Texts are escaped: plotly reads HTML.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports.model import CandidateView, CaseView, ErrorRow

SYMBOLS = {
    "winner": "star",
    "baseline": "square",
    "default": "diamond",
    "other": "circle",
    "slow": "circle-open",
    "wrong": "x-thin",
    "failed": "cross-thin",
    "rejected": "line-ew",
}
SIZES = {"winner": 17, "baseline": 9, "default": 10, "other": 7, "slow": 8, "wrong": 9, "failed": 10, "rejected": 10}
LEGEND = {"winner": "winner", "baseline": "baseline", "default": "default", "other": "other", "slow": "slow, cut off"}
UNTIMED = ("wrong", "failed", "rejected")
DTYPE_SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "star-open")

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it modulo 1 spread evenly, so neighbours in a lane never lie on each other."""

LANE_PIXELS = 46
CONFIG_CHARACTERS = 46


def _spread(place: int, width: float) -> float:
    """Offset number ``place`` in a lane, within half of ``width`` of its middle; the first is in the middle."""
    return ((place * GOLDEN + 0.5) % 1 - 0.5) * width


def _text(*lines: str) -> str:
    return "<br>".join(html.escape(line) for line in lines if line)


def _wrapped(text: str, width: int = 70) -> list[str]:
    """Lines of at most about ``width`` characters, broken at spaces where there are any."""
    lines = [""]
    for word in text.split():
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [line for line in lines if line]


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Times at 1, 2 and 5 of each decade with their units; only 1 and 3, or 1, where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [step * 10.0**decade for decade in decades for step in steps]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) <= 8:
            break
    return values, [fmt.time(value).replace(".00", "").replace(".0", "") for value in values]


def _json(traces: Sequence[Any], layout: dict[str, Any]) -> str:
    figure = go.Figure(data=list(traces), layout={"template": {}, **layout})
    return str(figure.to_json(validate=True)).replace("<", "\\u003c")


def _hover(view: CandidateView) -> str:
    record = view.record
    lines = [record.variant, *_wrapped(fmt.config(record.config))]
    if view.median is not None and view.interval is not None:
        low, high = view.interval
        lines.append(f"{fmt.time(view.median)} (95% {fmt.time(low)} to {fmt.time(high)}, n={len(record.samples_s)})")
        lines.append(f"{fmt.ratio(view.ratio)} the winner's time")
    if view.roles or record.status != "ok":
        lines.append(", ".join([*view.roles, *([record.status] if record.status != "ok" else [])]))
    return _text(*lines, *_wrapped(record.problem or ""))


def _points(role: str, xs: list[float], ys: list[float], texts: list[str], **more: Any) -> Any:
    thin = SYMBOLS[role] in ("x-thin", "cross-thin", "line-ew")
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        meta=role,
        hovertext=texts,
        hoverinfo="text",
        marker={"symbol": SYMBOLS[role], "size": SIZES[role], "line": {"width": 2 if thin else 1}},
        **more,
    )


def candidates(case: CaseView) -> str | None:
    """All candidates of a case: time by variant, one lane each; those without a time in a strip at the right."""
    if not case.candidates:
        return None
    lanes: list[str] = list(dict.fromkeys(c.record.variant for c in case.candidates))
    place = {variant: len(lanes) - 1 - index for index, variant in enumerate(lanes)}
    seen: defaultdict[tuple[str, str], int] = defaultdict(int)
    timed: defaultdict[str, list[tuple[CandidateView, float]]] = defaultdict(list)
    untimed: defaultdict[str, list[tuple[CandidateView, float, float]]] = defaultdict(list)
    for view in case.candidates:
        variant, status = view.record.variant, view.record.status
        has_time = bool(view.median)
        lane = (variant, "" if has_time else status)
        offset = _spread(seen[lane], 0.62)
        if has_time:
            role = "slow" if view.record.status == "slow" and view.role == "other" else view.role
            timed[role].append((view, place[variant] + offset))
        else:
            untimed[status].append((view, _spread(seen[lane] * 7, 0.6), place[variant] + offset))
        seen[lane] += 1
    strip = [status for status in (*UNTIMED, "slow", "ok") if untimed[status]]
    traces = []
    for role in ("slow", "other", "baseline", "default", "winner"):
        points = timed[role]
        if points:
            trace = _points(
                role, [v.median or 0.0 for v, _ in points], [y for _, y in points], [_hover(v) for v, _ in points]
            )
            trace.name = LEGEND[role]
            trace.error_x = {
                "type": "data",
                "symmetric": False,
                "array": [v.interval[1] - (v.median or 0.0) if v.interval else 0.0 for v, _ in points],
                "arrayminus": [(v.median or 0.0) - v.interval[0] if v.interval else 0.0 for v, _ in points],
                "thickness": 1.5,
                "width": 3,
            }
            traces.append(trace)
    for column, name in enumerate(strip):
        found = untimed[name]
        role = name if name in SYMBOLS else "other"
        traces.append(
            _points(
                role,
                [column + x for _, x, _ in found],
                [y for _, _, y in found],
                [_hover(view) for view, _, _ in found],
                name=name,
                xaxis="x2",
                showlegend=False,
            )
        )
    return _json(traces, _candidates_layout(case, lanes, strip, timed))


def _candidates_layout(
    case: CaseView, lanes: list[str], strip: list[str], timed: dict[str, list[tuple[CandidateView, float]]]
) -> dict[str, Any]:
    ends = [end for points in timed.values() for v, _ in points for end in (*(v.interval or ()), v.median) if end]
    roof = case.roof_seconds
    low = min([*ends, *([roof] if roof else [])], default=1e-6) / 1.12
    high = max(ends, default=low * 10) * 1.12
    values, texts = _log_ticks(low, high)
    split = 1 - 0.085 * len(strip) if strip and ends else (0.0 if strip else 1.0)
    layout: dict[str, Any] = {
        "height": 96 + LANE_PIXELS * len(lanes),
        "margin": {"l": 10, "r": 10, "t": 44, "b": 48},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemsizing": "trace"},
        "xaxis": {
            "type": "log",
            "domain": [0, max(0.0, split - 0.02) if strip else 1],
            "range": [math.log10(low), math.log10(high)],
            "tickvals": values,
            "ticktext": texts,
            "title": {"text": "median time, log scale (left is faster)", "standoff": 8},
            "visible": bool(ends),
        },
        "yaxis": {
            "tickvals": list(range(len(lanes))),
            "ticktext": [html.escape(lane) for lane in reversed(lanes)],
            "range": [-0.55, len(lanes) - 0.45],
            "automargin": True,
            "zeroline": False,
        },
        "shapes": [],
        "annotations": [],
    }
    if strip:
        layout["xaxis2"] = {
            "domain": [split, 1],
            "range": [-0.5, len(strip) - 0.5],
            "tickvals": list(range(len(strip))),
            "ticktext": strip,
            "side": "bottom",
            "showgrid": False,
            "zeroline": False,
            "title": {"text": "not timed", "standoff": 8},
        }
        layout["shapes"].append(
            {
                "name": "strip",
                "type": "rect",
                "layer": "below",
                "xref": "paper",
                "yref": "paper",
                "x0": split,
                "x1": 1,
                "y0": 0,
                "y1": 1,
                "line": {"width": 0},
            }
        )
    if roof and ends:
        layout["shapes"].append(
            {
                "name": "roof",
                "type": "line",
                "x0": roof,
                "x1": roof,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"width": 2, "dash": "dash"},
            }
        )
        name = fmt.bound(case.entry.bound if case.entry else None)
        layout["annotations"].append(
            {
                "name": "roof",
                "text": html.escape(f"{name} roof {fmt.time(roof)}"),
                "x": math.log10(roof),
                "y": 0,
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "xshift": 4,
                "showarrow": False,
            }
        )
    return layout


def race(case: CaseView) -> str | None:
    """Paired rounds of the finalists: each point is one round's time over the winner's time in the same round."""
    if len(case.finalists) < 2:
        return None
    rows = list(reversed(case.finalists))
    traces = []
    for index, finalist in enumerate(rows):
        role = "winner" if finalist.is_winner else "baseline" if finalist.is_baseline else "other"
        rounds = len(finalist.ratios)
        traces.append(
            go.Scatter(
                x=list(finalist.ratios),
                y=[index + 0.22 + _spread(i, 0.2) for i in range(rounds)],
                mode="markers",
                meta=role,
                opacity=0.45,
                hovertext=[
                    _text(finalist.label, f"round {i + 1}: {fmt.ratio(r)}") for i, r in enumerate(finalist.ratios)
                ],
                hoverinfo="text",
                marker={"symbol": "circle", "size": 5},
                showlegend=False,
            )
        )
        low, high = finalist.interval
        trace = _points(
            role,
            [finalist.ratio],
            [index - 0.12],
            [_text(finalist.label, f"median {fmt.ratio(finalist.ratio)}, 95% {fmt.ratio(low)} to {fmt.ratio(high)}")],
            showlegend=False,
        )
        trace.error_x = {
            "type": "data",
            "symmetric": False,
            "array": [high - finalist.ratio],
            "arrayminus": [finalist.ratio - low],
            "thickness": 2,
            "width": 5,
        }
        traces.append(trace)
    ratios = [ratio for finalist in rows for ratio in finalist.ratios]
    pad = 0.06 * math.log10(max(ratios) / min(ratios)) + 0.001
    wide = max(ratios) / min(ratios) > 1.6
    ticks = [t for t in (0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100) if min(ratios) * 0.99 <= t <= max(ratios)]
    layout = {
        "height": 74 + 40 * len(rows),
        "margin": {"l": 10, "r": 10, "t": 10, "b": 48},
        "hovermode": "closest",
        "xaxis": {
            "type": "log",
            "range": [math.log10(min(ratios)) - pad, math.log10(max(ratios)) + pad],
            "title": {"text": "time over the winner's time in the same round, log scale", "standoff": 8},
            **({"tickvals": ticks, "ticktext": [f"{t:g}\u00d7" for t in ticks]} if wide else {"ticksuffix": "\u00d7"}),
        },
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [_lane_label(finalist.label) for finalist in rows],
            "range": [-0.5, len(rows) - 0.5],
            "automargin": True,
            "zeroline": False,
        },
        "shapes": [
            {
                "name": "one",
                "type": "line",
                "x0": 1,
                "x1": 1,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"width": 1.5, "dash": "dot"},
            }
        ],
    }
    return _json(traces, layout)


def _lane_label(label: str) -> str:
    """Variant above, its configuration below and shortened: the table has it whole."""
    variant, _, config = label.partition(" ")
    if len(config) > CONFIG_CHARACTERS:
        config = config[: CONFIG_CHARACTERS - 1] + "\u2026"
    return html.escape(variant) + (f"<br><sub>{html.escape(config)}</sub>" if config else "")


def errors(rows: Sequence[ErrorRow]) -> str | None:
    """Largest relative error by op and variant, one mark a dtype and output."""
    shown = [row for row in rows if row.rel_norm is not None and 0 < row.rel_norm < math.inf]
    if not shown:
        return None
    lanes = list(dict.fromkeys(f"{row.op} {row.variant}" for row in shown))
    place = {lane: len(lanes) - 1 - index for index, lane in enumerate(lanes)}
    groups: defaultdict[str, list[ErrorRow]] = defaultdict(list)
    for row in shown:
        groups[row.dtype].append(row)
    traces = []
    for index, (dtype, found) in enumerate(groups.items()):
        traces.append(
            go.Scatter(
                x=[row.rel_norm for row in found],
                y=[place[f"{row.op} {row.variant}"] + 0.13 * (index - (len(groups) - 1) / 2) for row in found],
                mode="markers",
                name=html.escape(dtype),
                meta=f"series{index % 4}",
                marker={"symbol": DTYPE_SYMBOLS[index % len(DTYPE_SYMBOLS)], "size": 9, "line": {"width": 1}},
                hovertext=[
                    _text(
                        f"{row.op}/{row.variant}, {row.dtype}, output {row.output}",
                        f"relative norm {fmt.error(row.rel_norm)}, worst element {fmt.error(row.worst)}",
                    )
                    for row in found
                ],
                hoverinfo="text",
            )
        )
    layout = {
        "height": 96 + 30 * len(lanes),
        "margin": {"l": 10, "r": 10, "t": 40, "b": 48},
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "xaxis": {
            "type": "log",
            "dtick": 1,
            "exponentformat": "power",
            "title": {"text": "relative norm of the error against float64, log scale (left is better)", "standoff": 8},
        },
        "yaxis": {
            "tickvals": list(range(len(lanes))),
            "ticktext": [html.escape(lane.replace(" ", "/", 1)) for lane in reversed(lanes)],
            "range": [-0.6, len(lanes) - 0.4],
            "automargin": True,
            "zeroline": False,
        },
    }
    return _json(traces, layout)
