"""What all charts share: marks by role, plotly JSON without colours, escaped texts.

Every trace carries its role in ``meta``, and every shape and annotation in ``name``; the page colours them by role, so
one figure serves light, dark and print. Shape and place say the same as colour. Texts are escaped: plotly reads HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt

SYMBOLS = {
    "winner": "star",
    "baseline": "square",
    "default": "diamond",
    "other": "circle",
    "slow": "circle-open",
    "wrong": "x-thin",
    "failed": "cross-thin",
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
    "rejected": 10,
    "skipped": 9,
}

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it modulo 1 spread evenly, so neighbours in a lane never lie on each other."""


def spread(place: int, width: float) -> float:
    """Offset number ``place`` in a lane, within half of ``width`` of its middle; the first is in the middle."""
    return ((place * GOLDEN + 0.5) % 1 - 0.5) * width


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


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Times at 1, 2 and 5 of each decade with their units; only 1 and 3, or 1, where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [step * 10.0**decade for decade in decades for step in steps]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) <= 6:
            break
    return values, [fmt.time(value).replace(".00", "").replace(".0", "") for value in values]


def to_json(traces: Sequence[Any], layout: dict[str, Any]) -> str:
    figure = go.Figure(data=list(traces), layout={"template": {}, **layout})
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
