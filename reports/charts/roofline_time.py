"""Kernels by time: floors, measured time and time lost; and matrix products by rows."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports.charts.common import LEGEND_ABOVE, line, log_axis, text, to_json
from reports.charts.roofline import kernel_text
from reports.roofline_model import KernelView, RooflineView, ceiling_rate, roof_name

MOST = 30
"""Kernels in the chart, those that lose most; the table has all."""

LANE_PIXELS = 38

FLOOR_SYMBOLS = {
    "dram": "triangle-up",
    "cache": "triangle-down",
    "tensor": "square",
    "vector": "diamond",
    "special": "cross",
}
CASE_CHARACTERS = 44


def times(view: RooflineView) -> str | None:
    """One lane a kernel, the one that loses most on top: its floors and its time on a log axis, and the time lost."""
    shown = view.kernels[:MOST]
    if not shown:
        return None
    lanes = {kernel.rank: len(shown) - place for place, kernel in enumerate(shown)}
    ends = [
        end
        for kernel in shown
        for end in (*kernel.record.floors_s.values(), kernel.record.measured_s, *(kernel.record.interval_s or ()))
        if end > 0
    ]
    # a floor far below all others says nothing but "not this one"
    low = max(min(ends), min(kernel.floor_s for kernel in shown) / 30) / 1.4
    # room for the percentage of the slowest
    high = max(ends) * (max(ends) / low) ** 0.14
    return to_json(
        [
            _lost_reach(shown, lanes),
            *_floors(view, shown, lanes, low),
            _measured(shown, lanes),
            _shares(shown, lanes),
            _lost(shown, lanes),
        ],
        {
            "height": 118 + LANE_PIXELS * len(shown),
            "margin": {"l": 10, "r": 10, "t": 44, "b": 56},
            "legend": LEGEND_ABOVE,
            "xaxis": log_axis(low, high, "time of one call, log scale", fmt.time, 8) | {"domain": [0, 0.68]},
            "xaxis2": _lost_axis(shown),
            "yaxis": {
                "tickvals": list(lanes.values()),
                "ticktext": [_lane(kernel) for kernel in shown],
                "range": [0.4, len(shown) + 0.6],
                "automargin": True,
                "zeroline": False,
            },
        },
    )


def _lane(kernel: KernelView) -> str:
    """Rank and op above, the case below and shortened: the table has it whole."""
    case = str(kernel.name).replace(" · ", " ")
    if len(case) > CASE_CHARACTERS:
        case = case[: CASE_CHARACTERS - 1] + "\u2026"
    return f'{kernel.rank} {html.escape(kernel.record.op)}<br><span style="font-size:11px">{html.escape(case)}</span>'


def _lost_reach(shown: list[KernelView], lanes: dict[int, int]) -> Any:
    """A thick line from the floor to the measured time."""
    return go.Scatter(
        x=[x for k in shown for x in (min(k.floor_s, k.record.measured_s), k.record.measured_s, None)],
        y=[y for k in shown for y in (lanes[k.rank], lanes[k.rank], None)],
        mode="lines",
        meta="lost",
        name="lost",
        hoverinfo="skip",
        line={"width": 9},
    )


def _floors(view: RooflineView, shown: list[KernelView], lanes: dict[int, int], low: float) -> list[Any]:
    """A mark for the floor under each roof: filled where it binds."""
    traces = []
    for roof in view.floors:
        found = [k for k in shown if k.record.floors_s.get(roof, 0.0) >= low]
        symbol = FLOOR_SYMBOLS.get(roof, "circle")
        if found:
            traces.append(
                go.Scatter(
                    x=[k.record.floors_s[roof] for k in found],
                    y=[lanes[k.rank] for k in found],
                    mode="markers",
                    meta=roof,
                    name=f"floor: {html.escape(roof_name(roof))}",
                    hovertext=[
                        text(
                            f"{k.rank} {k.label}",
                            f"{fmt.time(k.record.floors_s[roof])} under {roof_name(roof)}"
                            + (": this one binds" if k.record.bound == roof else ""),
                        )
                        for k in found
                    ],
                    hoverinfo="text",
                    marker={
                        "symbol": [symbol if k.record.bound == roof else f"{symbol}-open" for k in found],
                        "size": [13 if k.record.bound == roof else 8 for k in found],
                        "opacity": 1,
                        "line": {"width": 1},
                    },
                )
            )
    return traces


def _measured(shown: list[KernelView], lanes: dict[int, int]) -> Any:
    """The measured time with its interval."""
    return go.Scatter(
        x=[k.record.measured_s for k in shown],
        y=[lanes[k.rank] for k in shown],
        mode="markers",
        meta="measured",
        name="measured",
        hovertext=[kernel_text(k) for k in shown],
        hoverinfo="text",
        customdata=[[k.goal, None] for k in shown],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [k.record.interval_s[1] - k.record.measured_s if k.record.interval_s else 0.0 for k in shown],
            "arrayminus": [k.record.measured_s - k.record.interval_s[0] if k.record.interval_s else 0.0 for k in shown],
            "thickness": 2,
            "width": 0,
        },
        marker={"symbol": "line-ns", "size": 15, "line": {"width": 3}},
    )


def _shares(shown: list[KernelView], lanes: dict[int, int]) -> Any:
    """Floor over measured time, right of both."""
    return go.Scatter(
        x=[max(k.record.measured_s, k.floor_s) for k in shown],
        y=[lanes[k.rank] for k in shown],
        mode="text",
        meta="measured",
        text=[f"\u2002{fmt.share(k.record.share)}" for k in shown],
        textposition="middle right",
        hoverinfo="skip",
        showlegend=False,
    )


def _lost(shown: list[KernelView], lanes: dict[int, int]) -> Any:
    """Bars of the time lost, to one linear scale."""
    return go.Bar(
        x=[k.record.lost_s for k in shown],
        y=[lanes[k.rank] for k in shown],
        orientation="h",
        width=0.5,
        meta="lost",
        xaxis="x2",
        showlegend=False,
        hovertext=[text(f"{k.rank} {k.label}", f"loses {fmt.time(k.record.lost_s)} a call") for k in shown],
        hoverinfo="text",
        text=[fmt.time(k.record.lost_s) if k.record.lost_s else "none" for k in shown],
        textposition="outside",
        cliponaxis=False,
        marker={"line": {"width": 0}},
    )


def _lost_axis(shown: list[KernelView]) -> dict[str, Any]:
    most = max(k.record.lost_s for k in shown) or 1e-6
    scale, unit = fmt.time_unit(most)
    step = 10 ** math.floor(math.log10(most / scale))
    step = next(s * step for s in (0.2, 0.5, 1, 2, 5) if most / scale / (s * step) <= 2.4)
    ticks = [i * step for i in range(int(most / scale / step) + 1)]
    return {
        "domain": [0.74, 1],
        "range": [0, most * 1.7],
        "tickvals": [tick * scale for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
        "title": {"text": f"time lost a call ({unit})", "standoff": 8},
    }


def matmul_rows(view: RooflineView) -> str | None:
    """Rate of matrix products over their rows, one line a dtype, with intervals."""
    curves = view.rows_curves
    if not curves:
        return None
    traces, every = [], []
    for place, (dtype, curve) in enumerate(curves.items()):
        trace = line(
            f"series{place % 8}",
            place,
            [rows for rows, _ in curve],
            [c.value for _, c in curve],
            [
                text(
                    f"{fmt.plural(rows, 'row')}, {dtype}: {ceiling_rate(c, c.value)}",
                    f"95% {ceiling_rate(c, c.low)} to {ceiling_rate(c, c.high)}",
                )
                for rows, c in curve
            ],
            dtype,
        )
        trace.error_y = {
            "type": "data",
            "symmetric": False,
            "array": [c.high - c.value for _, c in curve],
            "arrayminus": [c.value - c.low for _, c in curve],
            "thickness": 2,
            "width": 4,
        }
        traces.append(trace)
        every += [end for _, c in curve for end in (c.low, c.high)]
    rows = sorted({rows for curve in curves.values() for rows, _ in curve})
    axis = log_axis(
        rows[0] / 1.25, rows[-1] * 1.25, "rows (tokens that share one pass over the weights), log scale", str
    )
    axis |= {"tickvals": rows, "ticktext": [fmt.count(value) for value in rows]}
    return to_json(
        traces,
        {
            "height": 300,
            "margin": {"l": 10, "r": 10, "t": 30, "b": 56},
            "showlegend": len(traces) > 1,
            "legend": LEGEND_ABOVE,
            "xaxis": axis,
            "yaxis": log_axis(min(every) / 1.3, max(every) * 1.3, "", lambda v: fmt.rate(v, "flops_per_s"), 5)
            | {"automargin": True},
        },
    )
