"""The regime map: what binds a model's pass at every batch and length, a letter and a colour in each cell."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports import forward_text as words
from reports.charts.common import LEGEND_ON_TOP, facet_title, text, to_json
from reports.forward_model import PageView
from roofline.pass_records import GridPoint
from roofline.times import REGIMES
from roofline.work import Phase

CELL_PIXELS = 26


def regimes(view: PageView, phase: Phase) -> str | None:
    """Models side by side; columns are lengths, rows batches, and cells that do not fit in memory are hatched."""
    models = [model for model in view.models if any(p.model == model and p.phase == phase for p in view.page.grid)]
    if not models:
        return None
    columns = {seq: place for place, seq in enumerate(view.seqs)}
    rows = {batch: place for place, batch in enumerate(view.batches)}
    points = [p for p in view.page.grid if p.phase == phase]
    traces: list[Any] = []
    for name in view.regimes(phase):
        first = True
        for place, model in enumerate(models):
            found = [p for p in points if p.regime == name and p.model == model]
            found.sort(key=lambda p: p.fits is False)  # the legend shows the first
            if found:
                traces.append(_cells(name, found, columns, rows, place, first))
                first = False
    layout: dict[str, Any] = {
        "height": 120 + CELL_PIXELS * len(rows),
        "margin": {"l": 10, "r": 10, "t": 68, "b": 50},
        "barmode": "overlay",
        "bargap": 0,
        "showlegend": True,
        "legend": LEGEND_ON_TOP,
        "annotations": [],
    }
    gap, step = 0.02, 1 if len(columns) * len(models) <= 15 else 2
    wide = (1 - gap * (len(models) - 1)) / len(models)
    for place, model in enumerate(models):
        number = "" if place == 0 else str(place + 1)
        left = place * (wide + gap)
        layout[f"xaxis{number}"] = {
            "domain": [left, min(1.0, left + wide)],
            "anchor": f"y{number}",
            "range": [-0.5, len(columns) - 0.5],
            "tickvals": list(columns.values())[::step],
            "ticktext": [words.short_count(seq) for seq in columns][::step],
            "tickangle": 0,
            "tickfont": {"size": 11},
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "title": {"text": "length (tokens; 1K = 1024)", "standoff": 6},
        }
        layout[f"yaxis{number}"] = {
            "domain": [0, 1],
            "anchor": f"x{number}",
            "range": [-0.5, len(rows) - 0.5],
            "tickvals": list(rows.values()),
            "ticktext": [str(batch) for batch in rows],
            "tickfont": {"size": 11},
            "showticklabels": place == 0,
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            **({"title": {"text": "batch", "standoff": 6}} if place == 0 else {}),
        }
        layout["annotations"].append(facet_title(number, model, 3))
    return to_json(traces, layout)


def _cells(
    name: str, points: list[GridPoint], columns: dict[int, int], rows: dict[int, int], place: int, legend: bool
) -> Any:
    """Bars one wide and one high are cells that can carry a letter and a hatch."""
    number = "" if place == 0 else str(place + 1)
    letter = words.letter(name)
    return go.Bar(
        x=[columns[p.seq] for p in points],
        base=[rows[p.batch] - 0.5 for p in points],
        y=[1] * len(points),
        width=1,
        text=[letter] * len(points),
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        name=html.escape(f"{letter} {name}"),
        legendgroup=name,
        showlegend=legend,
        meta=f"regime-{name}" if name in REGIMES else "other",
        marker={
            "pattern": {
                "shape": ["/" if p.fits is False else "" for p in points],
                "fillmode": "overlay",
                "size": 9,
                "solidity": 0.15,
            },
            "line": {"width": 1},
        },
        hovertext=[_hover(p) for p in points],
        hoverinfo="text",
        xaxis=f"x{number}",
        yaxis=f"y{number}",
    )


def _hover(point: GridPoint) -> str:
    launches = 1 - point.graphed_s / point.predicted_s
    return text(
        words.label(point),
        f"{fmt.time(point.predicted_s)}, {fmt.decimal(point.tokens_per_s, 'tokens/s')}",
        f"bound by {words.regime(point.regime)}",
        f"floor {fmt.share(point.floor_s / point.predicted_s)} of the time, launches {fmt.share(launches)}",
        f"needs {fmt.size(point.needed_bytes)}" + (": does not fit in memory" if point.fits is False else ""),
    )
