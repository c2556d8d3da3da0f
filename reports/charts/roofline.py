"""The charts of the tab *Roofline*: ceilings and the kernels below them, time lost, matrix products by rows."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from reports import format as fmt
from reports.charts import plot
from reports.roofline_model import KernelView, Roof, RooflineView, ceiling_rate, roof_name
from roofline.ceilings import Ceiling

HEIGHT = 560
TOP, BOTTOM = 60, 56
LABEL_PIXELS = 17
"""Least distance of two labels at the right."""

OP_SYMBOLS = (
    "circle", "hexagon2", "star", "hourglass", "pentagon", "bowtie", "star-diamond", "hexagram", "star-square",
    "octagon", "diamond-wide", "diamond-tall", "circle-open", "star-open", "pentagon-open", "hexagon2-open",
    "hourglass-open", "bowtie-open", "star-diamond-open", "hexagram-open", "star-square-open", "octagon-open",
    "diamond-wide-open", "diamond-tall-open", "circle-dot", "star-dot", "pentagon-dot", "hexagon2-dot",
    "star-diamond-dot", "hexagram-dot", "star-square-dot", "octagon-dot", "diamond-wide-dot", "diamond-tall-dot",
)  # fmt: skip
"""One for each op; none of them stands for a roof elsewhere."""

STEPS = 40
"""Points of a line: pointing at any of them tells what it is."""

MOST = 30
"""Kernels in the chart of times, those that lose most; the table has all."""

LANE_PIXELS = 38
CASE_CHARACTERS = 44

FLOOR_SYMBOLS = {
    "dram": "triangle-up", "cache": "triangle-down", "tensor": "square", "vector": "diamond", "special": "cross",
}  # fmt: skip

LINE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def roofline(view: RooflineView) -> str | None:
    """All measured roofs, every kernel below its own limit; None without a roof."""
    if not view.roofs:
        return None
    shown = [kernel for kernel in view.kernels if kernel.intensity]
    slanted = [roof.value for roof in view.roofs if roof.slanted]
    flat = [roof.value for roof in view.roofs if not roof.slanted]
    # ridges: where a slanted roof meets a flat one; special functions are far below, and no kernel does nothing else
    ridges = [
        roof.value / rate for roof in view.roofs if not roof.slanted and roof.role != "special" for rate in slanted
    ]
    places = [*ridges, *(kernel.intensity for kernel in shown if kernel.intensity)]
    xs = min(places, default=0.1) / 3, max(places, default=10.0) * 4
    rates = [*flat, *(rate for kernel in shown for rate in (kernel.reached, kernel.limit))]
    starts = [] if shown else [rate * xs[0] * 2 for rate in slanted]
    ends = [] if flat else [rate * xs[1] for rate in slanted]
    ys = min([*rates, *starts, *ends]) / 3, max([*rates, *ends]) * 2.5
    traces = [_line(roof, slanted, flat, xs, place) for place, roof in enumerate(view.roofs)]
    if shown:
        # a thin line from each kernel to its own limit
        gaps = plot.scatter(
            "soft", [x for k in shown for x in (k.intensity, k.intensity, None)],
            [y for k in shown for y in (k.reached, k.limit, None)], None, "lines", showlegend=False, line={"width": 1},
        )  # fmt: skip
        traces += [gaps, *_limits(shown, view), *_kernels(shown, view)]
    layout: dict[str, Any] = plot.framed(HEIGHT, TOP, BOTTOM, right=215) | {
        "legend": plot.LEGEND_ABOVE | {"itemsizing": "constant"},
        "xaxis": plot.log_axis(*xs, "operations per byte moved, log scale", fmt.significant, 9),
        "yaxis": plot.log_axis(*ys, "operations per second, log scale", lambda v: fmt.rate(v, "ops_per_s"), 8)
        | {"automargin": True},
        "annotations": _labels(view.roofs, xs, ys),
    }
    return plot.to_json(traces, layout)


def _line(roof: Roof, slanted: Sequence[float], flat: Sequence[float], xs: tuple[float, float], place: int) -> Any:
    """Slanted roofs end at the highest flat one; flat ones begin at the highest slanted one."""
    left, right = xs
    if roof.slanted:
        right = min([right, *([max(flat) / roof.value] if flat else [])])
    else:
        left = max([left, *([roof.value / max(slanted)] if slanted else [])])
    steps = [left * (max(right, left * 1.01) / left) ** (i / STEPS) for i in range(STEPS + 1)]
    told = plot.text(f"{roof.label}: {roof.rate}", ceiling_interval(roof.ceiling), roof.ceiling.source)
    return plot.scatter(
        roof.role, steps, [roof.value * x if roof.slanted else roof.value for x in steps], [told] * len(steps), "lines",
        name=f"roof {html.escape(roof.key)}", showlegend=False, line={"width": 2, "dash": plot.dash(place)},
    )  # fmt: skip


def _by(kernels: Sequence[KernelView], name: str) -> dict[str, list[KernelView]]:
    """Kernels by a field of their record."""
    groups: defaultdict[str, list[KernelView]] = defaultdict(list)
    for kernel in kernels:
        groups[getattr(kernel.record, name)].append(kernel)
    return groups


def _limits(kernels: Sequence[KernelView], view: RooflineView) -> list[Any]:
    """A short bar where each kernel would be at its floor, in the colour of the roof that binds it."""

    def told(k: KernelView) -> str:
        limit = f"limit of {k.rank} {k.label}: {fmt.rate(k.limit, 'ops_per_s')}"
        return plot.text(limit, f"if it took its floor of {fmt.time(k.floor_s)} under {roof_name(k.record.bound)}")

    return [
        plot.scatter(
            bound, [k.intensity for k in found], [k.limit for k in found], list(map(told, found)), showlegend=False,
            customdata=[[None, f"roof {html.escape(view.roof_of(k))}"] for k in found],
            marker=plot.mark("line-ew", 15, 3),
        )
        for bound, found in _by(kernels, "bound").items()
    ]  # fmt: skip


def _kernels(kernels: Sequence[KernelView], view: RooflineView) -> list[Any]:
    """One series an op, each with its own shape; numbered as in the tables."""
    in_order = sorted(kernels, key=lambda kernel: (kernel.record.op, kernel.rank))
    return [
        plot.scatter(
            "measured", [k.intensity for k in found], [k.reached for k in found], list(map(kernel_text, found)),
            "markers+text", name=html.escape(op), text=[str(k.rank) for k in found],
            textposition=["middle right" if k.rank % 2 else "middle left" for k in found],
            customdata=[[k.goal, f"roof {html.escape(view.roof_of(k))}"] for k in found],
            marker=plot.mark(OP_SYMBOLS[place % len(OP_SYMBOLS)], 11),
        )
        for place, (op, found) in enumerate(_by(in_order, "op").items())
    ]  # fmt: skip


def kernel_text(kernel: KernelView) -> str:
    """What pointing at a kernel tells."""
    record = kernel.record
    return plot.text(
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
    notes, taken = [], -math.inf
    flat = sorted((roof for roof in roofs if not roof.slanted), key=lambda roof: roof.value)
    for roof in flat:
        place = math.log10(roof.value) * per_decade
        taken = max(place, taken + LABEL_PIXELS)
        beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4}
        notes.append(_label(roof, y=math.log10(roof.value), yanchor="middle", yshift=taken - place, **beside))
    slanted = sorted((roof for roof in roofs if roof.slanted), key=lambda roof: -roof.value)
    for index, roof in enumerate(slanted):
        low, high = xs[0], min([xs[1], *(highest.value / roof.value for highest in flat[-1:])])
        if index == 0 and len(slanted) > 1:
            # above the highest roof there is room
            x, side = low * (high / low) ** 0.75, {"xanchor": "right", "yanchor": "bottom", "xshift": -6}
        else:
            x, side = max(low, ys[0] / roof.value), {"xanchor": "left", "yanchor": "top", "xshift": 14}
        notes.append(_label(roof, x=math.log10(x), y=math.log10(x * roof.value), **side))
    return notes


def _label(roof: Roof, **where: Any) -> dict[str, Any]:
    return plot.note(roof.role, html.escape(f"{roof.label} {roof.rate}"), **where)


def times(view: RooflineView) -> str | None:
    """One lane a kernel, the one that loses most on top: its floors and its time on a log axis, and the time lost."""
    shown = view.kernels[:MOST]
    if not shown:
        return None
    records = [kernel.record for kernel in shown]
    ends = [end for r in records for end in (*r.floors_s.values(), r.measured_s, *(r.interval_s or ())) if end > 0]
    # a floor far below all others says nothing but "not this one"
    low = max(min(ends), min(kernel.floor_s for kernel in shown) / 30) / 1.4
    # room for the percentage of the slowest
    high = max(ends) * (max(ends) / low) ** 0.14
    heights = range(len(shown), 0, -1)
    names = [plot.two_lines(f"{k.rank} {k.record.op}", str(k.name).replace(" · ", " "), CASE_CHARACTERS) for k in shown]
    layout = plot.framed(118 + LANE_PIXELS * len(shown), 44, 56) | {
        "legend": plot.LEGEND_ABOVE,
        "xaxis": plot.log_axis(low, high, "time of one call, log scale", fmt.time, 8) | {"domain": [0, 0.68]},
        "xaxis2": _lost_axis(shown),
        "yaxis": plot.lanes(names, 0, automargin=True) | {"tickvals": list(heights), "range": [0.4, len(shown) + 0.6]},
    }
    # a thick line from the floor to the measured time
    lost = [x for k in shown for x in (min(k.floor_s, k.record.measured_s), k.record.measured_s, None)]
    ys = [y for height in heights for y in (height, height, None)]
    traces = [plot.scatter("lost", lost, ys, None, "lines", name="lost", line={"width": 9})]
    for roof in view.floors:
        # the floors that the axis reaches
        floors = [(k, height, k.record.floors_s.get(roof, 0.0)) for k, height in zip(shown, heights, strict=True)]
        if found := [place for place in floors if place[2] >= low]:
            traces.append(_floor(roof, found))
    return plot.to_json([*traces, *_measured(shown, heights), _lost(shown, heights)], layout)


def _floor(roof: str, found: Sequence[tuple[KernelView, int, float]]) -> Any:
    """Marks of kernels, at their heights, for their floors under a roof: filled where it binds."""
    symbol = FLOOR_SYMBOLS.get(roof, "circle")
    binds = [kernel.record.bound == roof for kernel, *_ in found]
    told = [
        plot.text(
            f"{k.rank} {k.label}", f"{fmt.time(floor)} under {roof_name(roof)}" + (": this one binds" if best else "")
        )
        for (k, _, floor), best in zip(found, binds, strict=True)
    ]
    marker = plot.mark([symbol if best else f"{symbol}-open" for best in binds], [13 if best else 8 for best in binds])
    return plot.scatter(
        roof, [floor for *_, floor in found], [height for _, height, _ in found], told,
        name=f"floor: {html.escape(roof_name(roof))}", marker=marker | {"opacity": 1},
    )  # fmt: skip


def _measured(shown: Sequence[KernelView], heights: Sequence[int]) -> list[Any]:
    """The measured time with its interval; right of it and of the floor, floor over measured time."""
    times = [k.record.measured_s for k in shown]
    return [
        plot.scatter(
            "measured", times, heights, [kernel_text(k) for k in shown], name="measured",
            customdata=[[k.goal, None] for k in shown], marker={"symbol": "line-ns", "size": 15, "line": {"width": 3}},
            error_x=plot.whiskers(times, [k.record.interval_s for k in shown]),
        ),
        plot.scatter(
            "measured", [max(k.record.measured_s, k.floor_s) for k in shown], heights, None, "text",
            text=[f"\u2002{fmt.share(k.record.share)}" for k in shown], textposition="middle right", showlegend=False,
        ),
    ]  # fmt: skip


def _lost(shown: Sequence[KernelView], heights: Sequence[int]) -> Any:
    """Bars of the time lost, to one linear scale."""
    return go.Bar(
        x=[k.record.lost_s for k in shown], y=list(heights), orientation="h", width=0.5, meta="lost", xaxis="x2",
        showlegend=False, cliponaxis=False, marker={"line": {"width": 0}}, textposition="outside",
        text=[fmt.time(k.record.lost_s) if k.record.lost_s else "none" for k in shown],
        **plot.hover([plot.text(f"{k.rank} {k.label}", f"loses {fmt.time(k.record.lost_s)} a call") for k in shown]),
    )  # fmt: skip


def _lost_axis(shown: Sequence[KernelView]) -> dict[str, Any]:
    most = max(k.record.lost_s for k in shown) or 1e-6
    scale, unit = fmt.time_unit(most)
    step = 10 ** math.floor(math.log10(most / scale))
    step = next(s * step for s in (0.2, 0.5, 1, 2, 5) if most / scale / (s * step) <= 2.4)
    ticks = [i * step for i in range(int(most / scale / step) + 1)]
    named = {"tickvals": [tick * scale for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"domain": [0.74, 1], "range": [0, most * 1.7]} | named | plot.titled(f"time lost a call ({unit})")


def matmul_rows(view: RooflineView) -> str | None:
    """Rate of matrix products over their rows, one line a dtype, with intervals."""
    curves = view.rows_curves
    if not curves:
        return None
    traces = []
    for place, (dtype, curve) in enumerate(curves.items()):
        rows, found = zip(*curve, strict=True)
        values = [c.value for c in found]
        told = [f"{fmt.plural(n, 'row')}, {dtype}: {ceiling_rate(c, c.value)}" for n, c in curve]
        traces.append(
            plot.scatter(
                f"series{place % 8}", rows, values,
                [plot.text(head, ceiling_interval(c)) for head, c in zip(told, found, strict=True)], "lines+markers",
                name=html.escape(dtype), line={"dash": plot.dash(place), "width": 2},
                marker=plot.mark(LINE_SYMBOLS[place % len(LINE_SYMBOLS)], 7),
                error_y=plot.whiskers(values, [(c.low, c.high) for c in found], width=4),
            )
        )  # fmt: skip
    ends = [end for curve in curves.values() for _, c in curve for end in (c.low, c.high)]
    ticks = sorted({rows for curve in curves.values() for rows, _ in curve})
    title = plot.titled("rows (tokens that share one pass over the weights), log scale")
    layout = plot.framed(300, 30, 56) | {
        "showlegend": len(traces) > 1,
        "legend": plot.LEGEND_ABOVE,
        "xaxis": plot.log_scale(ticks[0] / 1.25, ticks[-1] * 1.25, ticks, [fmt.count(value) for value in ticks])
        | title,
        "yaxis": plot.log_axis(min(ends) / 1.3, max(ends) * 1.3, "", lambda v: fmt.rate(v, "flops_per_s"), 5)
        | {"automargin": True},
    }
    return plot.to_json(traces, layout)


def ceiling_interval(ceiling: Ceiling) -> str:
    return f"95% {ceiling_rate(ceiling, ceiling.low)} to {ceiling_rate(ceiling, ceiling.high)}"
