"""The chart of numerical errors of an op."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from reports import format as fmt
from reports.charts.common import LEGEND_ABOVE, text, to_json
from reports.model import ErrorRow

SERIES_SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "star-open")


def errors(rows: Sequence[ErrorRow]) -> str | None:
    """Largest relative error by variant, one series a dtype and output."""
    shown = [row for row in rows if row.rel_norm is not None and 0 < row.rel_norm < math.inf]
    if not shown:
        return None
    lanes = list(dict.fromkeys(row.variant for row in shown))
    place = {lane: len(lanes) - 1 - index for index, lane in enumerate(lanes)}
    groups: defaultdict[str, list[ErrorRow]] = defaultdict(list)
    for row in shown:
        groups[f"{row.dtype} {row.output}"].append(row)
    traces = []
    for index, (series, found) in enumerate(groups.items()):
        traces.append(
            go.Scatter(
                x=[row.rel_norm for row in found],
                y=[place[row.variant] + 0.16 * (index - (len(groups) - 1) / 2) for row in found],
                mode="markers",
                name=html.escape(series),
                meta=f"series{index % 4}",
                marker={"symbol": SERIES_SYMBOLS[index % len(SERIES_SYMBOLS)], "size": 9, "line": {"width": 1}},
                hovertext=[
                    text(
                        f"{row.op}/{row.variant}, {row.dtype}, output {row.output}",
                        f"relative norm {fmt.error(row.rel_norm)}, worst element {fmt.error(row.worst)}",
                    )
                    for row in found
                ],
                hoverinfo="text",
            )
        )
    layout = {
        "height": 96 + 32 * len(lanes),
        "margin": {"l": 10, "r": 10, "t": 40, "b": 48},
        "showlegend": True,
        "legend": LEGEND_ABOVE,
        "xaxis": {
            "type": "log",
            "dtick": 1,
            "exponentformat": "power",
            "title": {"text": "relative norm of the error against float64, log scale (left is better)", "standoff": 8},
        },
        "yaxis": {
            "tickvals": list(range(len(lanes))),
            "ticktext": [html.escape(lane) for lane in reversed(lanes)],
            "range": [-0.6, len(lanes) - 0.4],
            "automargin": True,
            "zeroline": False,
        },
    }
    return to_json(traces, layout)
