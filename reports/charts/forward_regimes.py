"""The regime map: what binds a model's pass at every batch and length, a letter and a colour in each cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports import forward_text as words
from reports.charts import plot
from reports.forward_model import PageView
from roofline.pass_records import REGIMES, GridPoint
from roofline.work import Phase

CELL_PIXELS = 26


def regimes(view: PageView, phase: Phase) -> str | None:
    """Models side by side; columns are lengths, rows batches, and cells that do not fit in memory are hatched."""
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
        x=[view.seqs.index(p.seq) for p in points],
        base=[view.batches.index(p.batch) - 0.5 for p in points],
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
        marker={"pattern": hatch | {"fillmode": "overlay"}, "line": {"width": 1}},
        **plot.hover([_hover(p) for p in points]),
        **plot.facet_axes(facet),
    )


def _hover(point: GridPoint) -> str:
    launches = 1 - point.graphed_s / point.predicted_s
    return plot.text(
        words.label(point),
        f"{fmt.time(point.predicted_s)}, {fmt.decimal(point.tokens_per_s, 'tokens/s')}",
        f"bound by {words.regime(point.regime)}",
        f"floor {fmt.share(point.floor_s / point.predicted_s)} of the time, launches {fmt.share(launches)}",
        f"needs {fmt.size(point.needed_bytes)}" + (": does not fit in memory" if point.fits is False else ""),
    )
