"""The charts of the tab *Tuning*: all candidates of a case, the race of its finalists, numerical errors of an op."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from reports import format as fmt
from reports.charts import plot
from reports.model import CandidateView, CaseView, ErrorRow
from tuning.record.journal_records import BAD

LEGEND = {"slow": "slow, cut off", "other": "candidate"} | {name: name for name in ("baseline", "default", "winner")}
"""Role of a timed candidate -> its name in the legend, in the order of drawing."""

UNTIMED = (*BAD, "rejected", "skipped", "slow", "ok")
LANE_PIXELS = 40
CONFIG_CHARACTERS = 46
SERIES_SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "star-open")


def _hover(view: CandidateView) -> str:
    record = view.record
    lines = [record.variant, *plot.wrapped(fmt.config(record.config))]
    if view.median is not None and view.interval is not None:
        low, high = view.interval
        lines.append(f"{fmt.time(view.median)} (95% {fmt.time(low)} to {fmt.time(high)}, n={len(record.samples_s)})")
        lines.append(f"{fmt.ratio(view.ratio)} the winner's time")
    if view.roles or record.status != "ok":
        lines.append(", ".join([*view.roles, *([record.status] if record.status != "ok" else [])]))
    return plot.text(*lines, *plot.wrapped(record.problem or ""))


def candidates(case: CaseView) -> str | None:
    """All candidates of a case: time by variant, one lane each; those without a time in a strip at the right."""
    if not case.candidates:
        return None
    variants = list(dict.fromkeys(c.record.variant for c in case.candidates))[::-1]
    seen: defaultdict[tuple[str, str], int] = defaultdict(int)
    timed: defaultdict[str, list[tuple[CandidateView, float]]] = defaultdict(list)
    untimed: defaultdict[str, list[tuple[CandidateView, float, float]]] = defaultdict(list)
    for view in case.candidates:
        variant, status = view.record.variant, view.record.status
        lane = (variant, "" if view.median else status)
        y = variants.index(variant) + plot.spread(seen[lane], 0.62)
        if view.median:
            timed["slow" if status == "slow" and view.role == "other" else view.role].append((view, y))
        else:
            untimed[status].append((view, plot.spread(seen[lane] * 7, 0.6), y))
        seen[lane] += 1
    traces = []
    for role, name in LEGEND.items():
        if shown := timed[role]:
            medians = [v.median or 0.0 for v, _ in shown]
            trace = plot.points(
                role, medians, [y for _, y in shown], [_hover(v) for v, _ in shown], name=name,
                error_x=plot.whiskers(medians, [v.interval for v, _ in shown]),
            )  # fmt: skip
            if role != "slow":
                hollow = ["-open" if v.record.status == "slow" else "" for v, _ in shown]
                trace.marker.symbol = [plot.MARKS[role][0] + ending for ending in hollow]
            traces.append(trace)
    strip = [status for status in UNTIMED if untimed[status]]
    for column, name in enumerate(strip):
        views, xs, ys = zip(*untimed[name], strict=True)
        traces.append(
            plot.points(
                name if name in plot.MARKS else "other", [column + x for x in xs], ys, [_hover(view) for view in views],
                name=name, xaxis="x2", showlegend=False,
            )
        )  # fmt: skip
    ends = [end for shown in timed.values() for v, _ in shown for end in (*(v.interval or ()), v.median) if end]
    return plot.to_json(traces, _layout(case, variants, strip, ends))


def _layout(case: CaseView, variants: Sequence[str], strip: list[str], ends: list[float]) -> dict[str, Any]:
    """ends: times that the chart must hold."""
    roof = case.roof_seconds
    low = min([*ends, *([roof] if roof else [])], default=1e-6) / 1.12
    high = max(ends, default=low * 10) * 1.12
    split = 1 - min(0.095 * len(strip), 0.45) if strip and ends else (0.0 if strip else 1.0)
    layout: dict[str, Any] = plot.framed(96 + LANE_PIXELS * len(variants), 44, 48) | {
        "legend": plot.LEGEND_ABOVE | {"itemsizing": "trace", "traceorder": "reversed"},
        "xaxis": plot.log_axis(low, high, "median time, log scale (left is faster)", fmt.time)
        | {"domain": [0, max(0.0, split - 0.02) if strip else 1], "visible": bool(ends)},
        "yaxis": plot.lanes([html.escape(variant) for variant in variants], 0.55, automargin=True),
        "shapes": [],
        "annotations": [],
    }
    if strip:
        beside = {"domain": [split, 1], "side": "bottom", "showgrid": False}
        layout["xaxis2"] = plot.lanes(strip, 0.5) | plot.SMALL_TICKS | beside | plot.titled("not timed")
        place = {"xref": "paper", "yref": "paper", "x0": split, "x1": 1, "y0": 0, "y1": 1}
        layout["shapes"].append({"name": "strip", "type": "rect", "layer": "below", "line": {"width": 0}} | place)
    if roof and ends:
        layout["shapes"].append(plot.upright("roof", roof, 2, "dash"))
        name = fmt.bound(case.entry.bound if case.entry else None)
        where = {"x": math.log10(roof), "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom", "xshift": 4}
        layout["annotations"].append(plot.note("roof", html.escape(f"{name} roof {fmt.time(roof)}"), **where))
    return layout


def race(case: CaseView) -> str | None:
    """Paired rounds of the finalists: each point is one round's time over the winner's time in the same round."""
    if len(case.finalists) < 2:
        return None
    rows = list(reversed(case.finalists))
    traces = []
    for index, finalist in enumerate(rows):
        role = "winner" if finalist.is_winner else "baseline" if finalist.is_baseline else "other"
        label, ratios, middle = finalist.label, finalist.ratios, fmt.ratio(finalist.ratio)
        begin, end = map(fmt.ratio, finalist.interval)
        traces += [
            plot.scatter(
                role, ratios, [index + 0.22 + plot.spread(i, 0.2) for i in range(len(ratios))],
                [plot.text(label, f"round {i}: {fmt.ratio(ratio)}") for i, ratio in enumerate(ratios, 1)],
                opacity=0.45, marker={"symbol": "circle", "size": 5}, showlegend=False,
            ),
            plot.points(
                role, [finalist.ratio], [index - 0.12], [plot.text(label, f"median {middle}, 95% {begin} to {end}")],
                error_x=plot.whiskers([finalist.ratio], [finalist.interval], thickness=3), showlegend=False,
            ),
        ]  # fmt: skip
    every = [ratio for finalist in rows for ratio in finalist.ratios]
    low, high = min(every), max(every)
    pad = 0.06 * math.log10(high / low) + 0.001
    ticks = [t for t in (0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100) if low * 0.99 <= t <= high]
    named = {"tickvals": ticks, "ticktext": [f"{t:g}\u00d7" for t in ticks]}
    ends = {"type": "log", "range": [math.log10(low) - pad, math.log10(high) + pad]}
    title = plot.titled("time over the winner's time in the same round, log scale")
    parts = (finalist.label.partition(" ") for finalist in rows)
    labels = [plot.two_lines(variant, config, CONFIG_CHARACTERS) for variant, _, config in parts]
    layout = plot.framed(74 + 40 * len(rows), 10, 48) | {
        "xaxis": ends | title | (named if high / low > 1.6 else {"ticksuffix": "\u00d7"}),
        "yaxis": plot.lanes(labels, 0.5, automargin=True),
        "shapes": [plot.upright("one", 1, 1.5, "dot")],
    }
    return plot.to_json(traces, layout)


def errors(rows: Sequence[ErrorRow]) -> str | None:
    """Largest relative error by variant, one series a dtype and output."""
    shown = [row for row in rows if row.rel_norm is not None and 0 < row.rel_norm < math.inf]
    if not shown:
        return None
    variants = list(dict.fromkeys(row.variant for row in shown))[::-1]
    groups: defaultdict[str, list[ErrorRow]] = defaultdict(list)
    for row in shown:
        groups[f"{row.dtype} {row.output}"].append(row)

    def told(row: ErrorRow) -> str:
        what = f"{row.op}/{row.variant}, {row.dtype}, output {row.output}"
        return plot.text(what, f"relative norm {fmt.error(row.rel_norm)}, worst element {fmt.error(row.worst)}")

    traces = [
        plot.scatter(
            f"series{index % 4}", [row.rel_norm for row in found],
            [variants.index(row.variant) + 0.16 * (index - (len(groups) - 1) / 2) for row in found],
            list(map(told, found)), name=html.escape(series),
            marker=plot.mark(SERIES_SYMBOLS[index % len(SERIES_SYMBOLS)], 9),
        )
        for index, (series, found) in enumerate(groups.items())
    ]  # fmt: skip
    title = plot.titled("relative norm of the error against float64, log scale (left is better)")
    layout = plot.framed(96 + 32 * len(variants), 40, 48) | {
        "showlegend": True,
        "legend": plot.LEGEND_ABOVE,
        "xaxis": {"type": "log", "dtick": 1, "exponentformat": "power"} | title,
        "yaxis": plot.lanes([html.escape(variant) for variant in variants], 0.6, automargin=True),
    }
    return plot.to_json(traces, layout)
