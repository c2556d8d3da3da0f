"""The log-log roofline: what the device can do at most, and where its kernels are."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports.charts.common import DASHES, LEGEND_ABOVE, log_axis, text, to_json
from reports.roofline_model import KernelView, Roof, RooflineView, ceiling_rate, roof_name

HEIGHT = 560
TOP, BOTTOM = 60, 56
LABEL_PIXELS = 17
"""Least distance of two labels at the right."""

OP_SYMBOLS = (
    "circle", "hexagon2", "star", "hourglass", "pentagon", "bowtie", "star-diamond", "hexagram", "star-square",
    "octagon", "diamond-wide", "diamond-tall", "circle-open", "star-open", "pentagon-open", "hexagon2-open",
)  # fmt: skip
"""One for each op; none of them stands for a roof elsewhere."""

STEPS = 40
"""Points of a line: pointing at any of them tells what it is."""


def roofline(view: RooflineView) -> str | None:
    """All measured roofs, every kernel below its own limit; None without a roof."""
    if not view.roofs:
        return None
    shown = [kernel for kernel in view.kernels if kernel.intensity]
    xs = _x_range(shown, view.roofs)
    ys = _y_range(shown, view.roofs, xs)
    traces = [_line(roof, view.roofs, xs, place) for place, roof in enumerate(view.roofs)]
    if shown:
        traces += [_gaps(shown), *_limits(shown, view), *_kernels(shown, view)]
    layout: dict[str, Any] = {
        "height": HEIGHT,
        "margin": {"l": 10, "r": 215, "t": TOP, "b": BOTTOM},
        "legend": LEGEND_ABOVE | {"itemsizing": "constant"},
        "xaxis": log_axis(*xs, "operations per byte moved, log scale", fmt.significant, 9),
        "yaxis": log_axis(*ys, "operations per second, log scale", lambda v: fmt.rate(v, "ops_per_s"), 8)
        | {"automargin": True},
        "annotations": _labels(view.roofs, xs, ys),
    }
    return to_json(traces, layout)


def _x_range(kernels: Sequence[KernelView], roofs: Sequence[Roof]) -> tuple[float, float]:
    """Around the kernels, and the ridges: where a slanted roof meets a flat one."""
    slanted = [roof.value for roof in roofs if roof.slanted]
    # special functions are far below all others, and no kernel does nothing else
    flat = [roof.value for roof in roofs if not roof.slanted and roof.role != "special"]
    ridges = [value / rate for value in flat for rate in slanted]
    found = [kernel.intensity for kernel in kernels if kernel.intensity]
    return min([*ridges, *found], default=0.1) / 3, max([*ridges, *found], default=10.0) * 4


def _y_range(kernels: Sequence[KernelView], roofs: Sequence[Roof], xs: tuple[float, float]) -> tuple[float, float]:
    rates = [rate for kernel in kernels for rate in (kernel.reached, kernel.limit)]
    flat = [roof.value for roof in roofs if not roof.slanted]
    starts = [] if kernels else [roof.value * xs[0] * 2 for roof in roofs if roof.slanted]
    ends = [] if flat else [roof.value * xs[1] for roof in roofs if roof.slanted]
    return min([*rates, *flat, *starts, *ends]) / 3, max([*rates, *flat, *ends]) * 2.5


def _line(roof: Roof, roofs: Sequence[Roof], xs: tuple[float, float], place: int) -> Any:
    """Slanted roofs end at the highest flat one; flat ones begin at the highest slanted one."""
    slanted = [other.value for other in roofs if other.slanted]
    flat = [other.value for other in roofs if not other.slanted]
    left, right = xs
    if roof.slanted:
        right = min([right, *([max(flat) / roof.value] if flat else [])])
    else:
        left = max([left, *([roof.value / max(slanted)] if slanted else [])])
    steps = [left * (max(right, left * 1.01) / left) ** (i / STEPS) for i in range(STEPS + 1)]
    ceiling = roof.ceiling
    low, high = ceiling_rate(ceiling, ceiling.low), ceiling_rate(ceiling, ceiling.high)
    told = text(f"{roof.label}: {roof.rate}", f"95% {low} to {high}", ceiling.source)
    return go.Scatter(
        x=steps,
        y=[roof.value * x if roof.slanted else roof.value for x in steps],
        mode="lines",
        meta=roof.role,
        name=f"roof {html.escape(roof.key)}",
        showlegend=False,
        hovertext=[told] * len(steps),
        hoverinfo="text",
        line={"width": 2, "dash": DASHES[place % len(DASHES)]},
    )


def _gaps(kernels: Sequence[KernelView]) -> Any:
    """A thin line from each kernel to its own limit."""
    return go.Scatter(
        x=[x for kernel in kernels for x in (kernel.intensity, kernel.intensity, None)],
        y=[y for kernel in kernels for y in (kernel.reached, kernel.limit, None)],
        mode="lines",
        meta="soft",
        hoverinfo="skip",
        showlegend=False,
        line={"width": 1},
    )


def _limits(kernels: Sequence[KernelView], view: RooflineView) -> list[Any]:
    """A short bar where each kernel would be at its floor, in the colour of the roof that binds it."""
    groups: defaultdict[str, list[KernelView]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.record.bound].append(kernel)
    return [
        go.Scatter(
            x=[kernel.intensity for kernel in found],
            y=[kernel.limit for kernel in found],
            mode="markers",
            meta=bound,
            showlegend=False,
            hovertext=[
                text(
                    f"limit of {kernel.rank} {kernel.label}: {fmt.rate(kernel.limit, 'ops_per_s')}",
                    f"if it took its floor of {fmt.time(kernel.floor_s)} under {roof_name(bound)}",
                )
                for kernel in found
            ],
            hoverinfo="text",
            customdata=[[None, f"roof {html.escape(view.roof_of(kernel))}"] for kernel in found],
            marker={"symbol": "line-ew", "size": 15, "line": {"width": 3}},
        )
        for bound, found in groups.items()
    ]


def _kernels(kernels: Sequence[KernelView], view: RooflineView) -> list[Any]:
    """One series an op, each with its own shape; numbered as in the tables."""
    groups: defaultdict[str, list[KernelView]] = defaultdict(list)
    for kernel in sorted(kernels, key=lambda kernel: (kernel.record.op, kernel.rank)):
        groups[kernel.record.op].append(kernel)
    return [
        go.Scatter(
            x=[kernel.intensity for kernel in found],
            y=[kernel.reached for kernel in found],
            mode="markers+text",
            meta="measured",
            name=html.escape(op),
            text=[str(kernel.rank) for kernel in found],
            textposition=["middle right" if kernel.rank % 2 else "middle left" for kernel in found],
            hovertext=[kernel_text(kernel) for kernel in found],
            hoverinfo="text",
            customdata=[[kernel.goal, f"roof {html.escape(view.roof_of(kernel))}"] for kernel in found],
            marker={"symbol": OP_SYMBOLS[place % len(OP_SYMBOLS)], "size": 11, "line": {"width": 1}},
        )
        for place, (op, found) in enumerate(groups.items())
    ]


def kernel_text(kernel: KernelView) -> str:
    """What pointing at a kernel tells."""
    record = kernel.record
    return text(
        f"{kernel.rank} {kernel.label}",
        record.variant,
        f"{fmt.time(record.measured_s)}, {fmt.share(record.share)} of the floor of {fmt.time(kernel.floor_s)}",
        f"bound by {roof_name(record.bound)}; loses {fmt.time(record.lost_s) if record.lost_s else 'nothing'}",
        f"faster than its ceiling: {kernel.over}" if kernel.over else "",
        "Click to see how it was chosen." if kernel.anchor else "",
    )


def _labels(roofs: Sequence[Roof], xs: tuple[float, float], ys: tuple[float, float]) -> list[dict[str, Any]]:
    """Flat roofs are named at the right, pushed apart where they are close; slanted ones beside them."""
    per_decade = (HEIGHT - TOP - BOTTOM) / math.log10(ys[1] / ys[0])
    notes = []
    taken = -math.inf
    for roof in sorted((roof for roof in roofs if not roof.slanted), key=lambda roof: roof.value):
        place = math.log10(roof.value) * per_decade
        shifted = max(place, taken + LABEL_PIXELS)
        taken = shifted
        notes.append(
            _label(roof)
            | {"x": 1, "xref": "paper", "y": math.log10(roof.value), "xanchor": "left", "yanchor": "middle"}
            | {"xshift": 4, "yshift": shifted - place}
        )
    flat = [roof.value for roof in roofs if not roof.slanted]
    slanted = sorted((roof for roof in roofs if roof.slanted), key=lambda roof: -roof.value)
    for place, roof in enumerate(slanted):
        low, high = xs[0], min([xs[1], *(max(flat) / roof.value for _ in flat[:1])])
        if place == 0 and len(slanted) > 1:
            # above the highest roof there is room
            x = low * (high / low) ** 0.75
            side = {"xanchor": "right", "yanchor": "bottom", "xshift": -6}
        else:
            x = max(low, ys[0] / roof.value)
            side = {"xanchor": "left", "yanchor": "top", "xshift": 14}
        notes.append(_label(roof) | {"x": math.log10(x), "y": math.log10(x * roof.value)} | side)
    return notes


def _label(roof: Roof) -> dict[str, Any]:
    return {"name": roof.role, "text": html.escape(f"{roof.label} {roof.rate}"), "showarrow": False}
