"""The chart of a race: finalists compared in pairs."""

from __future__ import annotations

import html
import math

import plotly.graph_objects as go

from reports import format as fmt
from reports.charts.common import points, spread, text, to_json
from reports.model import CaseView

CONFIG_CHARACTERS = 46


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
                y=[index + 0.22 + spread(i, 0.2) for i in range(rounds)],
                mode="markers",
                meta=role,
                opacity=0.45,
                hovertext=[
                    text(finalist.label, f"round {i + 1}: {fmt.ratio(r)}") for i, r in enumerate(finalist.ratios)
                ],
                hoverinfo="text",
                marker={"symbol": "circle", "size": 5},
                showlegend=False,
            )
        )
        low, high = finalist.interval
        trace = points(
            role,
            [finalist.ratio],
            [index - 0.12],
            [text(finalist.label, f"median {fmt.ratio(finalist.ratio)}, 95% {fmt.ratio(low)} to {fmt.ratio(high)}")],
            showlegend=False,
        )
        trace.error_x = {
            "type": "data",
            "symmetric": False,
            "array": [high - finalist.ratio],
            "arrayminus": [finalist.ratio - low],
            "thickness": 3,
            "width": 0,
        }
        traces.append(trace)
    ratios = [ratio for finalist in rows for ratio in finalist.ratios]
    pad = 0.06 * math.log10(max(ratios) / min(ratios)) + 0.001
    wide = max(ratios) / min(ratios) > 1.6
    ticks = [t for t in (0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100) if min(ratios) * 0.99 <= t <= max(ratios)]
    layout = {
        "height": 74 + 40 * len(rows),
        "margin": {"l": 10, "r": 10, "t": 10, "b": 48},
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
    return to_json(traces, layout)


def _lane_label(label: str) -> str:
    """Variant above, its configuration below and shortened: the table has it whole."""
    variant, _, config = label.partition(" ")
    if len(config) > CONFIG_CHARACTERS:
        config = config[: CONFIG_CHARACTERS - 1] + "\u2026"
    return html.escape(variant) + (f'<br><span style="font-size:11px">{html.escape(config)}</span>' if config else "")
