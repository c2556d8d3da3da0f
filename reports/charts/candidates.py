"""The chart of all candidates of a case."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from typing import Any

from reports import format as fmt
from reports.charts.common import LEGEND_ABOVE, SYMBOLS, log_axis, points, spread, text, to_json, wrapped
from reports.model import CandidateView, CaseView
from tuning.record.journal_records import BAD

LEGEND = {
    "winner": "winner",
    "baseline": "baseline",
    "default": "default",
    "other": "candidate",
    "slow": "slow, cut off",
}
UNTIMED = (*BAD, "rejected", "skipped", "slow", "ok")
LANE_PIXELS = 40


def _hover(view: CandidateView) -> str:
    record = view.record
    lines = [record.variant, *wrapped(fmt.config(record.config))]
    if view.median is not None and view.interval is not None:
        low, high = view.interval
        lines.append(f"{fmt.time(view.median)} (95% {fmt.time(low)} to {fmt.time(high)}, n={len(record.samples_s)})")
        lines.append(f"{fmt.ratio(view.ratio)} the winner's time")
    if view.roles or record.status != "ok":
        lines.append(", ".join([*view.roles, *([record.status] if record.status != "ok" else [])]))
    return text(*lines, *wrapped(record.problem or ""))


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
        offset = spread(seen[lane], 0.62)
        if has_time:
            role = "slow" if view.record.status == "slow" and view.role == "other" else view.role
            timed[role].append((view, place[variant] + offset))
        else:
            untimed[status].append((view, spread(seen[lane] * 7, 0.6), place[variant] + offset))
        seen[lane] += 1
    strip = [status for status in UNTIMED if untimed[status]]
    traces = []
    for role in ("slow", "other", "baseline", "default", "winner"):
        shown = timed[role]
        if shown:
            trace = points(
                role, [v.median or 0.0 for v, _ in shown], [y for _, y in shown], [_hover(v) for v, _ in shown]
            )
            if role != "slow":
                hollow = ["-open" if v.record.status == "slow" else "" for v, _ in shown]
                trace.marker.symbol = [SYMBOLS[role] + ending for ending in hollow]
            trace.name = LEGEND[role]
            trace.error_x = {
                "type": "data",
                "symmetric": False,
                "array": [v.interval[1] - (v.median or 0.0) if v.interval else 0.0 for v, _ in shown],
                "arrayminus": [(v.median or 0.0) - v.interval[0] if v.interval else 0.0 for v, _ in shown],
                "thickness": 2,
                "width": 0,
            }
            traces.append(trace)
    for column, name in enumerate(strip):
        found = untimed[name]
        role = name if name in SYMBOLS else "other"
        traces.append(
            points(
                role,
                [column + x for _, x, _ in found],
                [y for _, _, y in found],
                [_hover(view) for view, _, _ in found],
                name=name,
                xaxis="x2",
                showlegend=False,
            )
        )
    return to_json(traces, _candidates_layout(case, lanes, strip, timed))


def _candidates_layout(
    case: CaseView, lanes: list[str], strip: list[str], timed: dict[str, list[tuple[CandidateView, float]]]
) -> dict[str, Any]:
    ends = [end for shown in timed.values() for v, _ in shown for end in (*(v.interval or ()), v.median) if end]
    roof = case.roof_seconds
    low = min([*ends, *([roof] if roof else [])], default=1e-6) / 1.12
    high = max(ends, default=low * 10) * 1.12
    split = 1 - min(0.095 * len(strip), 0.45) if strip and ends else (0.0 if strip else 1.0)
    layout: dict[str, Any] = {
        "height": 96 + LANE_PIXELS * len(lanes),
        "margin": {"l": 10, "r": 10, "t": 44, "b": 48},
        "legend": LEGEND_ABOVE | {"itemsizing": "trace", "traceorder": "reversed"},
        "xaxis": log_axis(low, high, "median time, log scale (left is faster)", fmt.time)
        | {"domain": [0, max(0.0, split - 0.02) if strip else 1], "visible": bool(ends)},
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
            "tickangle": 0,
            "tickfont": {"size": 11},
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
