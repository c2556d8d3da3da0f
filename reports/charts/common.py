"""What all charts share: marks by role, plotly JSON without colours, escaped texts.

Every trace carries its role in ``meta``, and every shape and annotation in ``name``; the page colours them by role, so
one figure serves light, dark and print. Shape and place say the same as colour. Texts are escaped: plotly reads HTML.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

SYMBOLS = {
    "winner": "star",
    "baseline": "square",
    "default": "diamond",
    "other": "circle",
    "slow": "circle-open",
    "wrong": "x-thin",
    "failed": "cross-thin",
    "crashed": "asterisk-open",
    "timeout": "hourglass-open",
    "memory": "square-x-open",
    "rejected": "line-ew",
    "skipped": "triangle-right-open",
}
SIZES = {
    "winner": 17,
    "baseline": 9,
    "default": 10,
    "other": 7,
    "slow": 8,
    "wrong": 9,
    "failed": 10,
    "crashed": 10,
    "timeout": 10,
    "memory": 10,
    "rejected": 10,
    "skipped": 9,
}

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
    """Lines of at most about ``width`` characters, broken at spaces where there are any."""
    lines = [""]
    for word in text.split():
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [line for line in lines if line]


def log_places(low: float, high: float, most: int = 6) -> list[float]:
    """At most about ``most`` round numbers from ``low`` to ``high``: 1, 2, 5 of each decade, or fewer of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [step * 10.0**decade for decade in decades for step in steps]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]


def log_axis(low: float, high: float, title: str, texts: Callable[[float], str], most: int = 6) -> dict[str, Any]:
    """A log axis over [low, high] whose ticks are round numbers; texts: how one is written, with its unit."""
    values = log_places(low, high, most)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": values,
        "ticktext": [bare(texts(value)) for value in values],
        "title": {"text": html.escape(title), "standoff": 8},
    }


def bare(text: str) -> str:
    """A number without the zeros after its point: ``1.00 ms`` -> ``1 ms``."""
    return re.sub(r"\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)", r"\1", text)


def to_json(traces: Sequence[Any], layout: dict[str, Any]) -> str:
    figure = go.Figure(data=list(traces), layout={"template": {}, "hovermode": "closest", **layout})
    return str(figure.to_json(validate=True)).replace("<", "\\u003c")


def points(role: str, xs: list[float], ys: list[float], texts: list[str], **more: Any) -> Any:
    thin = SYMBOLS[role] in ("x-thin", "cross-thin", "line-ew")
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        meta=role,
        hovertext=texts,
        hoverinfo="text",
        marker={"symbol": SYMBOLS[role], "size": SIZES[role], "line": {"width": 2 if thin else 1}},
        **more,
    )


LEGEND_ABOVE: dict[str, Any] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
"""Above the plot, from its left."""

LEGEND_ON_TOP: dict[str, Any] = LEGEND_ABOVE | {"yref": "container", "yanchor": "top"}
"""At the top of the figure, above titles of facets."""


def facet_title(number: str, title: str, shift: int) -> dict[str, Any]:
    """An annotation above the axes ``x<number>`` and ``y<number>``, at their left."""
    return {
        "name": "facet", "text": f"<b>{html.escape(title)}</b>", "showarrow": False, "yshift": shift,
        "xref": f"x{number} domain", "x": 0, "xanchor": "left",
        "yref": f"y{number} domain", "y": 1, "yanchor": "bottom",
    }  # fmt: skip


DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LINE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
"""By place of a series: what distinguishes it beside its colour."""


def line(
    role: str, place: int, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str], name: str, **more: Any
) -> Any:
    """A line with marks. place: of the series, which gives dash and mark. texts: escaped, one a point."""
    return go.Scatter(
        x=list(xs),
        y=list(ys),
        mode="lines+markers",
        meta=role,
        name=html.escape(name),
        hovertext=list(texts),
        hoverinfo="text",
        line={"dash": DASHES[place % len(DASHES)], "width": 2},
        marker={"symbol": LINE_SYMBOLS[place % len(LINE_SYMBOLS)], "size": 7, "line": {"width": 1}},
        **more,
    )
