"""Charts of one forward pass: where its time goes, by kind of layer and layer by layer.

Each bar is the floor, then what is predicted above it, then what was measured and not predicted. Where less was
measured than predicted, the bar ends at the prediction and the part that was not needed is hatched the other way.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports import forward_text as words
from reports.charts import plot
from roofline.pass_records import Part, PassRecord

ROW_PIXELS = 30
LAYER_PIXELS = 17

PIECES = {
    "floor": ("floor: the least it can take", ""),
    "above": ("predicted above the floor", ""),
    "unexplained": ("measured, not predicted", "/"),
    "overestimate": ("predicted, not needed", "x"),
}
"""Role of a piece of a bar -> its name in the legend, and its hatch."""


def kinds(found: PassRecord) -> str | None:
    """The pass as a waterfall: kinds of layer one after the other, the whole pass below."""
    if not found.parts:
        return None
    parts = found.kinds
    *starts, at = itertools.accumulate(map(_length, parts), initial=0.0)
    rows, starts = [*parts, found.whole], [*starts, 0.0]
    names = [*map(words.part, parts), "whole pass"]
    counts = [f"{part.count} {fmt.TIMES} " if part.count > 1 else "" for part in parts]
    ticks = [count + name for count, name in zip([*counts, ""], names, strict=True)]
    scale, unit = fmt.time_unit(max(at, found.seconds))
    end = max(at, found.seconds, found.predicted_s) / scale
    traces = [*_bars(rows, names, starts, scale), _labels(rows, starts, scale, end)]
    layout = _layout(ticks, ROW_PIXELS, f"time ({unit})")
    layout["xaxis"]["range"] = [0, end * 1.3]
    return plot.to_json(traces, layout)


def layers(found: PassRecord) -> str | None:
    """Every part of every layer in order, all bars from zero."""
    parts = [part for part in found.timed if part.layer is not None]
    if not parts:
        return None
    scale, unit = fmt.time_unit(max(_length(part) for part in parts))
    names = [words.part(part) for part in parts]
    layout = _layout(names, LAYER_PIXELS, f"time ({unit})")
    layout["yaxis"]["tickfont"] = {"size": 11}
    return plot.to_json(_bars(parts, names, [0.0] * len(parts), scale), layout)


def _length(part: Part) -> float:
    return part.predicted_s if part.measured_s is None else max(part.measured_s, 0.0)


def _bars(parts: Sequence[Part], names: Sequence[str], starts: Sequence[float], scale: float) -> list[Any]:
    """Four bars a row: floor and above it up to what was predicted or measured, the smaller; then the difference."""
    pieces: dict[str, list[tuple[float, float]]] = {role: [] for role in PIECES}
    for part, start in zip(parts, starts, strict=True):
        predicted = part.predicted_s
        measured = predicted if part.measured_s is None else part.measured_s
        solid = min(predicted, measured)
        floor = min(part.floor_s, solid)
        pieces["floor"].append((start, floor))
        pieces["above"].append((start + floor, solid - floor))
        pieces["unexplained"].append((start + solid, max(0.0, measured - predicted)))
        pieces["overestimate"].append((start + solid, max(0.0, predicted - measured)))
    told = plot.hover([_hover(name, part) for name, part in zip(names, parts, strict=True)])
    return [
        go.Bar(
            orientation="h",
            y=list(range(len(parts))),
            x=[plot.short(length / scale) for _, length in found],
            base=[plot.short(start / scale) for start, _ in found],
            width=0.72,
            name=PIECES[role][0],
            meta=role,
            marker={"pattern": {"shape": PIECES[role][1], "size": 6, "solidity": 0.45}, "line": {"width": 0}},
            **told,
        )
        for role, found in pieces.items()
        if any(length > 0 for _, length in found)
    ]


def _labels(parts: Sequence[Part], starts: Sequence[float], scale: float, end: float) -> Any:
    """Time, and in brackets what is unexplained of it: right of a bar, or left where there is more room."""
    xs, places, shown = [], [], []
    for part, start in zip(parts, starts, strict=True):
        stop = start + max(part.predicted_s, part.measured_s or 0.0)
        label = fmt.time(part.predicted_s if part.measured_s is None else part.measured_s)
        if part.unexplained_s is not None:
            label += f" ({words.signed_time(part.unexplained_s)})"
        left = stop / scale > 0.7 * end and start / scale > 0.4 * end
        xs.append(plot.short((start if left else stop) / scale))
        places.append("middle left" if left else "middle right")
        shown.append(f"\u2002{html.escape(label)}\u2002")
    return plot.scatter(
        "label",
        xs,
        range(len(parts)),
        None,
        "text",
        text=shown,
        textposition=places,
        showlegend=False,
        cliponaxis=False,
    )


def _hover(name: str, part: Part) -> str:
    return plot.text(
        name if part.count == 1 else f"{name}, {part.count} together",
        f"floor {fmt.time(part.floor_s)} ({fmt.bound(part.bound)})",
        f"predicted {fmt.time(part.predicted_s)}",
        f"measured {fmt.time(part.measured_s)}" if part.measured_s is not None else "",
        f"unexplained {words.signed_time(part.unexplained_s)}" if part.measured_s is not None else "",
        f"{fmt.decimal(part.flops, 'FLOP')}, {fmt.decimal(part.bytes)}, {part.launches} launches",
    )


def _layout(names: Sequence[str], pixels: int, title: str) -> dict[str, Any]:
    rows = plot.lanes([html.escape(name) for name in names], 0.6, automargin=True, showgrid=False)
    return plot.framed(96 + pixels * len(names), 44, 48) | {
        "barmode": "overlay",
        "showlegend": True,
        "legend": plot.LEGEND_ABOVE,
        "xaxis": {"rangemode": "tozero"} | plot.titled(title),
        "yaxis": rows | {"range": rows["range"][::-1]},
    }
