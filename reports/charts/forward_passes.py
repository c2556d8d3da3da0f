"""Charts of where the time of forward passes goes: by kind of layer, layer by layer, and over batch and length.

Each bar of a pass is the floor, then what is predicted above it, then what was measured and not predicted. Where less
was measured than predicted, it ends at the prediction and the part that was not needed is hatched the other way.
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
from reports.forward_model import PageView
from roofline.study_records import REGIMES, GridPoint, Part, PassRecord
from roofline.work import Phase

ROW_PIXELS = 30
LAYER_PIXELS = 17
CELL_PIXELS = 26

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
            orientation="h", width=0.72, y=list(range(len(parts))),
            x=[plot.short(length / scale) for _, length in found],
            base=[plot.short(start / scale) for start, _ in found], name=PIECES[role][0], meta=role,
            marker={"pattern": {"shape": PIECES[role][1], "size": 6, "solidity": 0.45}, "line": {"width": 0}}, **told,
        )
        for role, found in pieces.items()
        if any(length > 0 for _, length in found)
    ]  # fmt: skip


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
    how: dict[str, Any] = {"textposition": places, "showlegend": False, "cliponaxis": False}
    return plot.scatter("label", xs, range(len(parts)), None, "text", text=shown, **how)


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


def regimes(view: PageView, phase: Phase) -> str | None:
    """The regime map: what binds a model's pass at every batch and length, a letter and a colour in each cell.

    Models side by side; columns are lengths, rows batches, and cells that do not fit in memory are hatched.
    """
    points = [p for p in view.page.grid if p.phase == phase]
    models = [model for model in view.models if any(p.model == model for p in points)]
    if not models:
        return None
    traces: list[Any] = []
    for name in view.regimes(phase):
        legend = True
        for facet, model in enumerate(models, 1):
            # the legend shows the first
            found = sorted((p for p in points if (p.regime, p.model) == (name, model)), key=lambda p: p.fits is False)
            if found:
                traces.append(_cells(name, found, view, facet, legend))
                legend = False
    layout = plot.framed(120 + CELL_PIXELS * len(view.batches), 68, 50)
    layout |= {"barmode": "overlay", "bargap": 0, "showlegend": True, "legend": plot.LEGEND_ON_TOP}
    gap, step = 0.02, 1 if len(view.seqs) * len(models) <= 15 else 2
    wide = (1 - gap * (len(models) - 1)) / len(models)
    x = plot.lanes([words.short_count(seq) for seq in view.seqs], 0.5) | plot.titled("length (tokens; 1K = 1024)", 6)
    x |= {name: x[name][::step] for name in ("tickvals", "ticktext")}
    y = plot.lanes([str(batch) for batch in view.batches], 0.5, domain=[0, 1], tickfont={"size": 11}, automargin=True)
    still = {"showgrid": False, "fixedrange": True}
    for facet, model in enumerate(models, 1):
        left = (facet - 1) * (wide + gap)
        named = {"showticklabels": facet == 1} | (plot.titled("batch", 6) if facet == 1 else {})
        plot.add_facet(
            layout, facet, model, 3, x | still | {"domain": [left, min(1.0, left + wide)]}, y | still | named
        )
    return plot.to_json(traces, layout)


def _cells(name: str, points: Sequence[GridPoint], view: PageView, facet: int, legend: bool) -> Any:
    """Bars one wide and one high are cells that can carry a letter and a hatch."""
    letter = words.letter(name)
    hatch = {"shape": ["/" if p.fits is False else "" for p in points], "size": 9, "solidity": 0.15}
    return go.Bar(
        x=[view.seqs.index(p.seq) for p in points], base=[view.batches.index(p.batch) - 0.5 for p in points],
        y=[1] * len(points), width=1,
        text=[letter] * len(points), textposition="inside", insidetextanchor="middle", textangle=0,
        name=html.escape(f"{letter} {name}"), legendgroup=name, showlegend=legend,
        meta=f"regime-{name}" if name in REGIMES else "other",
        marker={"pattern": hatch | {"fillmode": "overlay"}, "line": {"width": 1}},
        **plot.hover([_cell_hover(p) for p in points]), **plot.facet_axes(facet),
    )  # fmt: skip


def _cell_hover(point: GridPoint) -> str:
    launches = f"launches {fmt.share(1 - point.graphed_s / point.predicted_s)}"
    if point.mode == "graph" and point.eager_s:
        launches = (
            f"launched from Python {fmt.time(point.eager_s)}, {fmt.decimal(point.tokens / point.eager_s, 'tokens/s')}"
        )
    return plot.text(
        words.label(point),
        f"{fmt.time(point.predicted_s)}, {fmt.decimal(point.tokens_per_s, 'tokens/s')}",
        f"bound by {words.regime(point.regime)}",
        f"floor {fmt.share(point.floor_s / point.predicted_s)} of the time, {launches}",
        f"needs {fmt.size(point.needed_bytes)}" + (": does not fit in memory" if point.fits is False else ""),
    )
