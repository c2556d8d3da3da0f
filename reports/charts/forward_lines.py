"""Charts over length and batch: latency, tokens per second and memory of every model, predicted and measured."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from reports import format as fmt
from reports import forward_text as words
from reports.charts import plot
from reports.forward_model import PageView
from roofline.study_records import GridPoint, PassRecord

SYMBOLS = ("circle", "diamond", "square", "triangle-up")
"""Of models, filled where measured and open where predicted."""

AXIS_TITLES = {"batch": "batch (sequences)", "seq": "length (tokens; 1K = 1024)"}

Ticks = tuple[list[float], list[str]]
"""Places of ticks and what is written there."""


def speed(view: PageView, axis: str, fixed: int) -> str | None:
    """Latency and tokens per second along ``batch`` or ``seq``, prefill above decode; the other size is ``fixed``."""
    if not any(view.line(model, phase, axis, fixed) for model in view.models for phase in view.phases):
        return None
    traces: list[Any] = []
    layout, x = _layout(len(view.phases)), _across(view, axis)
    where = words.number_of("seq" if axis == "batch" else "batch", fixed)
    columns = (("latency", "predicted_s", "seconds", time_ticks), ("tokens/s", "tokens_per_s", "rate", rate_ticks))
    for facet, (phase, column) in enumerate(itertools.product(view.phases, columns), 1):
        what, predicted, taken, ticks = column
        shown: list[float] = []
        for place, model in enumerate(view.models):
            line, runs = view.line(model, phase, axis, fixed), view.measured(model, phase, axis, fixed)
            shown += [getattr(p, predicted) for p in line] + [getattr(run, taken) for run in runs]
            traces += _predicted(line, axis, predicted, place, facet)
            traces += [_measured(runs, axis, taken, place, facet)] if runs else []
        title = f"{words.capital(phase)}: {what}, {where}"
        plot.add_facet(layout, facet, title, 4, *_axes(facet, (len(view.phases), 2), x, shown, ticks))
    return plot.to_json(traces, layout)


def memory(view: PageView, batch: int) -> str | None:
    """Weights and cache over length at a batch, the device's memory; beside it the largest batch that fits."""
    phase = next(iter(view.memory_phases), None)
    if phase is None or not any(view.line(model, phase, "seq", batch) for model in view.models):
        return None
    columns = 2 if view.device_bytes else 1
    layout = _layout(1, 320)
    traces: list[Any] = []
    sizes: list[float] = [float(view.device_bytes)] if view.device_bytes else []
    weights: set[int] = set()
    batches: list[float] = []
    for place, model in enumerate(view.models):
        line = view.line(model, phase, "seq", batch)
        sizes += [float(size) for p in line for size in (p.cache_bytes, p.weight_bytes) if size]
        weights |= {p.weight_bytes for p in line}
        traces += _predicted(line, "seq", "cache_bytes", place, 1)
        traces.append(
            plot.scatter(
                f"series{place % 4}", [p.seq for p in line], [p.weight_bytes for p in line],
                [plot.text(model, f"weights {fmt.size(p.weight_bytes)}") for p in line], "lines",
                name="weights", line={"dash": "dash", "width": 1.5}, showlegend=False, **plot.facet_axes(1),
            )
        )  # fmt: skip
        fitting = {seq: found for seq in view.seqs if (found := view.largest_batch(model, seq))}
        if columns == 2 and fitting:
            batches += map(float, fitting.values())
            traces.append(
                plot.scatter(
                    f"series{place % 4}", fitting, fitting.values(),
                    [plot.text(model, f"{words.work(phase, s)}: batch {fmt.count(n)}") for s, n in fitting.items()],
                    "lines+markers", name=html.escape(model), showlegend=False, **plot.facet_axes(2),
                    marker=plot.mark(f"{SYMBOLS[place % 4]}-open", 8, 1.5), line={"width": 2},
                )
            )  # fmt: skip
    sizes.append(3 * max(sizes))  # room for a label above the highest line
    title = f"Cache at batch {fmt.count(batch)}, and weights (dashed)"
    x = _across(view, "seq")
    plot.add_facet(layout, 1, title, 4, *_axes(1, (1, columns), x, sizes, size_ticks))
    if columns == 2:
        plot.add_facet(layout, 2, "Largest batch that fits", 4, *_axes(2, (1, 2), x, batches, number_ticks))
        ends = {"x0": 0, "x1": 1, "y0": view.device_bytes, "y1": view.device_bytes, "xref": "x domain", "yref": "y"}
        layout["shapes"] = [{"name": "roof", "type": "line", "line": {"width": 2, "dash": "dash"}} | ends]
        label = f"memory of the device {fmt.size(view.device_bytes)}"
        layout["annotations"].append(_level_note("roof", label, view.device_bytes, x=1, xanchor="right"))
    label = f"weights {' to '.join(map(fmt.size, sorted({min(weights), max(weights)})))}"
    layout["annotations"].append(_level_note("label", label, max(weights), x=0, xanchor="left"))
    return plot.to_json(traces, layout)


def _level_note(name: str, label: str, size: int, **where: Any) -> dict[str, Any]:
    """A note above a size in the facet on the left."""
    return plot.note(name, label, xref="x domain", yref="y", y=math.log10(size), yanchor="bottom", **where)


def _predicted(line: Sequence[GridPoint], axis: str, value: str, place: int, facet: int) -> list[Any]:
    """A model's line with open marks; beyond what fits in memory it goes on dotted and without marks."""
    if not line:
        return []
    cut = next((index for index, point in enumerate(line) if point.fits is False), len(line))
    model, marker = line[0].model, plot.mark(f"{SYMBOLS[place % 4]}-open", 7, 1.5)
    hover, name = (_memory_hover, f"{model} cache") if value == "cache_bytes" else (_point_hover, model)
    solid: dict[str, Any] = {"mode": "lines+markers", "marker": marker, "line": {"width": 2}, "showlegend": facet == 1}
    dotted: dict[str, Any] = {"mode": "lines", "line": {"width": 2, "dash": "dot"}, "showlegend": False}
    pieces = [(line[:cut], name, solid), (line[max(0, cut - 1) :], f"{model}, does not fit", dotted)]
    return [
        plot.scatter(
            f"series{place % 4}", [getattr(p, axis) for p in piece], [plot.short(getattr(p, value)) for p in piece],
            [hover(p) for p in piece], name=html.escape(title), legendgroup=f"model{place}", **style,
            **plot.facet_axes(facet),
        )
        for piece, title, style in pieces[: 1 + (cut < len(line))]
    ]  # fmt: skip


def _measured(runs: Sequence[PassRecord], axis: str, taken: str, place: int, facet: int) -> Any:
    """Filled marks with 95 % intervals. taken: ``seconds`` or ``rate``."""
    middles = [getattr(run, taken) for run in runs]
    ends = [run.measured.interval_s for run in runs if run.measured]
    if taken == "rate":
        ends = [(run.tokens / high, run.tokens / low) for run, (low, high) in zip(runs, ends, strict=True)]
    error = plot.whiskers(middles, ends, width=4)
    error |= {side: list(map(plot.short, error[side])) for side in ("array", "arrayminus")}
    return plot.scatter(
        f"series{place % 4}", [getattr(run, axis) for run in runs], map(plot.short, middles),
        list(map(_measured_hover, runs)), name="measured", legendgroup=f"model{place}", showlegend=False,
        marker=plot.mark(SYMBOLS[place % 4], 11), error_y=error, **plot.facet_axes(facet),
    )  # fmt: skip


def _point_hover(point: GridPoint) -> str:
    return plot.text(
        words.label(point),
        f"predicted {fmt.time(point.predicted_s)}, {fmt.decimal(point.tokens_per_s, 'tokens/s')}",
        f"bound by {words.regime(point.regime)}",
        "does not fit in memory" if point.fits is False else "",
    )


def _memory_hover(point: GridPoint) -> str:
    return plot.text(
        words.label(point),
        f"cache {fmt.size(point.cache_bytes)}, weights {fmt.size(point.weight_bytes)}",
        f"needs {fmt.size(point.needed_bytes)} in all" + (": does not fit" if point.fits is False else ""),
    )


def _measured_hover(record: PassRecord) -> str:
    assert record.measured is not None
    low, high = record.measured.interval_s
    return plot.text(
        words.label(record),
        f"measured {fmt.time(record.seconds)}, 95% {fmt.time(low)} to {fmt.time(high)}",
        fmt.decimal(record.rate, "tokens/s"),
        f"predicted {fmt.time(record.predicted_s)}, off by {words.signed(record.error)}",
    )


def _layout(rows: int, pixels: int = 260) -> dict[str, Any]:
    return plot.framed(64 + pixels * rows, 64, 50) | {"showlegend": True, "legend": plot.LEGEND_ON_TOP}


def _across(view: PageView, axis: str) -> dict[str, Any]:
    """An axis of the grid."""
    xs = view.values[axis]
    texts = [words.short_count(x) if axis == "seq" else str(x) for x in xs]
    return plot.log_scale(min(xs) / 1.25, max(xs) * 1.25, xs, texts) | plot.titled(AXIS_TITLES[axis], 6)


def _axes(
    facet: int, shape: tuple[int, int], x: dict[str, Any], values: Sequence[float], ticks: Callable[..., Ticks]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axes number ``facet`` of ``shape``, rows and columns: ``x``, and a range that holds ``values``."""
    rows, columns = shape
    row, column = divmod(facet - 1, columns)
    gap = 0.3 / rows if rows > 1 else 0.0
    tall = (1 - gap * (rows - 1)) / rows
    top = 1 - row * (tall + gap)
    wide = [0.0, 1.0] if columns == 1 else ([0.0, 0.44], [0.56, 1.0])[column]
    low, high = min(values, default=1.0) / 1.3, max(values, default=10.0) * 1.3
    y = plot.log_scale(low, high, *ticks(low, high)) | {"domain": [max(0.0, top - tall), min(1.0, top)]}
    return x | {"domain": wide}, y | {"automargin": True}


def time_ticks(low: float, high: float) -> Ticks:
    values = plot.log_places(low, high, 7, plot.STEPS)
    return values, [plot.bare(fmt.time(value)) for value in values]


def rate_ticks(low: float, high: float) -> Ticks:
    values = plot.log_places(low, high, 7, plot.STEPS)
    return values, [plot.bare(fmt.decimal(value, "")).strip() for value in values]


def _powers(low: float, high: float, base: float) -> list[float]:
    """Powers of ``base`` within the ends, thinned to at most eight."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    return [float(base) ** power for power in range(first, last + 1, max(1, -(-(last - first + 1) // 8)))]


def size_ticks(low: float, high: float) -> Ticks:
    """Bytes at powers of 4, 1 KiB among them."""
    values = _powers(low, high, 4)
    return values, [plot.bare(fmt.size(round(value))) for value in values]


def number_ticks(low: float, high: float) -> Ticks:
    """Whole numbers at powers of 10, or of 2 where these are few."""
    low = max(low, 1.0)
    values = _powers(low, high, 10 if high > 100 * low else 2)
    return values, [fmt.count(round(value)) for value in values]
