"""What charts are drawn with: marks by role, plotly JSON without colours, escaped texts.

Every trace carries its role in ``meta``, and every shape and annotation in ``name``; the page colours them by role, so
one figure serves light, dark and print. Shape and place say the same as colour. Texts are escaped: plotly reads HTML.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

MARKS = {
    "winner": ("star", 17),
    "baseline": ("square", 9),
    "default": ("diamond", 10),
    "other": ("circle", 7),
    "slow": ("circle-open", 8),
    "wrong": ("x-thin", 9),
    "failed": ("cross-thin", 10),
    "crashed": ("asterisk-open", 10),
    "timeout": ("hourglass-open", 10),
    "memory": ("square-x-open", 10),
    "rejected": ("line-ew", 10),
    "skipped": ("triangle-right-open", 9),
}
"""Role or status of a candidate -> symbol and size of its mark."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it modulo 1 spread evenly, so neighbours in a lane never lie on each other."""


def spread(place: int, width: float) -> float:
    """Offset number ``place`` in a lane, within half of ``width`` of its middle; the first is in the middle."""
    return ((place * GOLDEN + 0.5) % 1 - 0.5) * width


def short(value: float) -> float:
    """Five digits: more cannot be seen in a chart, and figures are most of a report's size."""
    return float(f"{value:.5g}")


def text(*lines: str) -> str:
    return "<br>".join(html.escape(line) for line in lines if line)


def wrapped(text: str, width: int = 70) -> list[str]:
    """Lines of at most ``width`` characters, broken at spaces where there are any."""
    return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def two_lines(head: str, tail: str, most: int) -> str:
    """``head``, and ``tail`` below it, small and cut after ``most`` characters: the table has it whole."""
    small = tail if len(tail) <= most else tail[: most - 1] + "\u2026"
    return html.escape(head) + (f'<br><span style="font-size:11px">{html.escape(small)}</span>' if tail else "")


STEPS = ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Round numbers of a decade, ever fewer of them."""


def log_places(low: float, high: float, most: int = 6, steps: Sequence[Sequence[float]] = STEPS[1:]) -> list[float]:
    """At most ``most`` round numbers from ``low`` to ``high``, as close as that allows."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for chosen in steps:
        every = [step * 10.0**decade for decade in decades for step in chosen]
        values = [value for value in every if low * 0.999 <= value <= high * 1.001]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]


def log_axis(low: float, high: float, title: str, texts: Callable[[float], str], most: int = 6) -> dict[str, Any]:
    """A log axis over [low, high] whose ticks are round numbers; texts: how one is written, with its unit."""
    values = log_places(low, high, most)
    return log_scale(low, high, values, [bare(texts(value)) for value in values]) | titled(html.escape(title))


def log_scale(low: float, high: float, ticks: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    """A log axis over [low, high] with given ticks."""
    ends = [math.log10(low), math.log10(high)]
    return {"type": "log", "range": ends, "tickvals": list(ticks), "ticktext": list(texts)}


def lanes(labels: Sequence[str], margin: float, **more: Any) -> dict[str, Any]:
    """An axis of lanes 0, 1, 2 ...; margin: what it reaches beyond the middles of the first and the last."""
    ends = [-margin, len(labels) - 1 + margin]
    return {"tickvals": list(range(len(labels))), "ticktext": list(labels), "range": ends, "zeroline": False, **more}


def titled(title: str, standoff: int = 8) -> dict[str, Any]:
    """The title of an axis."""
    return {"title": {"text": title, "standoff": standoff}}


def framed(height: float, top: int, bottom: int, right: int = 10) -> dict[str, Any]:
    """A layout's height and margins."""
    return {"height": height, "margin": {"l": 10, "r": right, "t": top, "b": bottom}}


def bare(text: str) -> str:
    """A number without the zeros after its point: ``1.00 ms`` -> ``1 ms``."""
    return re.sub(r"\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)", r"\1", text)


def to_json(traces: Sequence[Any], layout: dict[str, Any]) -> str:
    figure = go.Figure(data=list(traces), layout={"template": {}, "hovermode": "closest", **layout})
    return str(figure.to_json(validate=True)).replace("<", "\\u003c")


def hover(texts: Sequence[str] | None) -> dict[str, Any]:
    """What pointing at each mark tells, escaped; None: nothing."""
    return {"hoverinfo": "skip"} if texts is None else {"hovertext": list(texts), "hoverinfo": "text"}


def scatter(
    role: str, xs: Iterable[Any], ys: Iterable[Any], texts: Sequence[str] | None, mode: str = "markers", **more: Any
) -> Any:
    """Marks, lines or texts of one role; texts as in ``hover``."""
    return go.Scatter(x=list(xs), y=list(ys), mode=mode, meta=role, **hover(texts), **more)


def mark(symbol: str | list[str], size: float | list[int], width: float = 1) -> dict[str, Any]:
    return {"symbol": symbol, "size": size, "line": {"width": width}}


def points(role: str, xs: Iterable[float], ys: Iterable[float], texts: Sequence[str], **more: Any) -> Any:
    """Marks of candidates in the shape of their role."""
    symbol, size = MARKS[role]
    thin = symbol in ("x-thin", "cross-thin", "line-ew")
    return scatter(role, xs, ys, texts, marker=mark(symbol, size, 2 if thin else 1), **more)


def whiskers(
    middles: Iterable[float], intervals: Iterable[tuple[float, float] | None], thickness: int = 2, width: int = 0
) -> dict[str, Any]:
    """Error bars over intervals [low, high]; of no length where there is none."""
    pairs = [(middle, ends or (middle, middle)) for middle, ends in zip(middles, intervals, strict=True)]
    above, below = [ends[1] - middle for middle, ends in pairs], [middle - ends[0] for middle, ends in pairs]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": thickness, "width": width,
    }  # fmt: skip


def upright(name: str, x: float, width: float, dash: str) -> dict[str, Any]:
    """A vertical line across the plot."""
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"name": name, "type": "line", "line": {"width": width, "dash": dash}} | ends


def note(name: str, shown: str, **where: Any) -> dict[str, Any]:
    """An annotation without an arrow; shown: as HTML."""
    return {"name": name, "text": shown, "showarrow": False, **where}


LEGEND_ABOVE: dict[str, Any] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
"""Above the plot, from its left."""

LEGEND_ON_TOP: dict[str, Any] = LEGEND_ABOVE | {"yref": "container", "yanchor": "top"}
"""At the top of the figure, above titles of facets."""

SMALL_TICKS: dict[str, Any] = {"tickangle": 0, "tickfont": {"size": 11}}


def number(facet: int) -> str:
    """What plotly adds to the names of a facet's axes; the first is 1."""
    return "" if facet == 1 else str(facet)


def facet_axes(facet: int) -> dict[str, str]:
    """The axes that a trace of a facet is drawn on."""
    return {"xaxis": f"x{number(facet)}", "yaxis": f"y{number(facet)}"}


def add_facet(layout: dict[str, Any], facet: int, title: str, shift: int, x: dict[str, Any], y: dict[str, Any]) -> None:
    """Add axes to a layout, and their title above them at the left; shift: its distance in pixels."""
    n = number(facet)
    layout[f"xaxis{n}"] = {"anchor": f"y{n}"} | SMALL_TICKS | x
    layout[f"yaxis{n}"] = {"anchor": f"x{n}"} | y
    left = {"xref": f"x{n} domain", "x": 0, "xanchor": "left"}
    above = {"yref": f"y{n} domain", "y": 1, "yanchor": "bottom", "yshift": shift}
    layout.setdefault("annotations", []).append(note("facet", f"<b>{html.escape(title)}</b>", **left, **above))


def dash(place: int) -> str:
    """What distinguishes a series beside its colour, by its place."""
    return ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")[place % 6]
