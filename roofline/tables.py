"""Analyses as terminal tables (rich) and as CSV. Needs no PyTorch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from roofline.forward import REGIMES, Forward, gib
from roofline.records import Measured
from roofline.sweep import GridPoint

SHORT = {"parameters": "P", "cache": "C", "activations": "A", "compute": "F", "special": "S", "launch": "L"}
"""Letters of the regime map."""


def si(value: float, unit: str = "") -> str:
    """``12.3 G``: three digits and a prefix of 1000s."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float) -> str:
    """``1.23 ms``."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def show(console: Console, result: Forward, measured: Measured | None = None) -> None:
    """A pass: headline, one row per kind of part, where the time goes, memory, what it rests on."""
    what = "prefill of" if result.phase == "prefill" else "decode after"
    console.print(
        f"[bold]{result.model}[/bold], {what} {result.seq} tokens, batch {result.batch}, {result.dtype}, "
        f"on {result.target.name}",
        highlight=False,
    )
    console.print(
        f"predicted [bold]{seconds(result.latency_s)}[/bold], {si(result.tokens_per_s)} tokens/s, "
        f"{result.regime}-bound ({REGIMES[result.regime]}: {result.predicted[result.regime] / result.latency_s:.0%}); "
        f"{seconds(result.graphed_s)} without launches; floor {seconds(result.floor_s)}",
        highlight=False,
    )
    if measured is not None:
        console.print(
            f"measured  [bold]{seconds(measured.median_s)}[/bold] [{seconds(measured.interval_s[0])}, "
            f"{seconds(measured.interval_s[1])}], {si(result.tokens / measured.median_s)} tokens/s; "
            f"the prediction is off by {result.latency_s / measured.median_s - 1:+.0%}",
            highlight=False,
        )
    console.print(parts_table(result, measured))
    shares = ", ".join(
        f"{name} {value / result.latency_s:.0%}"
        for name, value in sorted(result.predicted.items(), key=lambda item: -item[1])
        if value > 0.005 * result.latency_s
    )
    console.print(f"time goes to: {shares}", highlight=False)
    memory = result.memory
    style = "red" if memory.fits is False else ""
    console.print(
        f"memory: {memory.sentence()} (weights {gib(memory.weights)}, cache {gib(memory.cache)}, "
        f"activations {gib(memory.activations)})"
        + (f"; largest batch at this length {memory.largest_batch}" if memory.largest_batch is not None else ""),
        style=style,
        highlight=False,
    )
    for sentence in result.target.assumptions:
        console.print(f"- {sentence}", style="dim", highlight=False)


def parts_table(result: Forward, measured: Measured | None = None) -> Table:
    """One row per kind of part, and the total."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part")
    names = [
        "count",
        "parameters",
        "FLOPs",
        "bytes",
        "bytes as run",
        "launches",
        "floor",
        "bound",
        "predicted",
        "share",
    ]
    for name in [*names, *(["measured", "predicted / measured"] if measured else [])]:
        table.add_column(name, justify="right")
    timed = measured_by_kind(result, measured)
    rows = result.by_kind()
    total = {name: sum(row[name] for row in rows) for name, value in rows[0].items() if not isinstance(value, str)}
    for row in [*rows, {"kind": "total", "bound": "", **total}]:
        cells = [
            row["kind"].replace("_", " "),
            str(row["count"]) if row["kind"] != "total" else "",
            si(row["parameters"]),
            si(row["tensor_flops"] + row["vector_flops"]),
            gib(row["bytes"]),
            gib(row["run_bytes"]),
            str(row["launches"]),
            seconds(row["floor_s"]),
            row["bound"],
            seconds(row["predicted_s"]),
            f"{row['predicted_s'] / result.latency_s:.0%}",
        ]
        if measured:
            taken = sum(timed.values()) if row["kind"] == "total" else timed[row["kind"]]
            cells += [seconds(taken), f"{row['predicted_s'] / taken:.2f}"]
        table.add_row(*cells, style="bold" if row["kind"] == "total" else "")
    return table


def measured_by_kind(result: Forward, measured: Measured | None) -> dict[str, float]:
    """Measured seconds summed over the parts of a kind."""
    taken: dict[str, float] = {}
    if measured is not None:
        for part, value in zip(result.parts, measured.parts_s, strict=True):
            taken[part.part.kind] = taken.get(part.part.kind, 0.0) + value
    return taken


def show_sweep(console: Console, points: Sequence[GridPoint]) -> None:
    """The regime map: batch down, length across; latency with the letter of what binds."""
    batches, seqs = sorted({p.batch for p in points}), sorted({p.seq for p in points})
    by_place = {(p.batch, p.seq): p for p in points}
    first = points[0]
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"{first.model}, {first.phase}: predicted latency"
    )
    table.add_column("batch \\ seq", justify="right")
    for seq in seqs:
        table.add_column(str(seq), justify="right")
    for batch in batches:
        cells = []
        for seq in seqs:
            point = by_place[batch, seq]
            text = f"{seconds(point.predicted_s)} {SHORT[point.regime]}"
            cells.append(f"[red]{text} !{'[/red]'}" if point.fits is False else text)
        table.add_row(str(batch), *cells)
    console.print(table)
    used = {p.regime for p in points}
    key = ", ".join(f"{SHORT[name]} {name} ({text})" for name, text in REGIMES.items() if name in used)
    console.print(f"bound by: {key}" + ("; ! does not fit" if any(p.fits is False for p in points) else ""))


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with the columns of the first; an empty table gives an empty text."""
    table = list(rows)
    if not table:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
