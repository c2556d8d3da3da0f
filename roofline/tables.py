"""Analyses as terminal tables (rich) and as CSV. Needs no PyTorch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from griffin_kernels.datasheet import Datasheet
from griffin_kernels.models.config import GriffinConfig
from roofline.forward import Forward, gib
from roofline.study_records import Measured, Study
from roofline.sweep import GridPoint
from roofline.times import REGIMES
from roofline.units import seconds_text

SHORT = {"parameters": "P", "cache": "C", "activations": "A", "compute": "F", "special": "S", "launch": "L"}
"""Letters of the regime map."""


def si(value: float, unit: str = "") -> str:
    """``12.3 G``: three digits and a prefix of 1000s."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def show(console: Console, result: Forward, measured: Measured | None = None, *, layers: bool = False) -> None:
    """A pass: headline, one row per kind of part (or per part), where the time goes, memory, what it rests on."""
    what = "prefill of" if result.phase == "prefill" else "decode after"
    console.print(
        f"[bold]{result.model}[/bold], {what} {result.seq} tokens, batch {result.batch}, {result.dtype}, "
        f"on {result.target.name}",
        highlight=False,
    )
    console.print(
        f"predicted [bold]{seconds_text(result.latency_s)}[/bold], {si(result.tokens_per_s)} tokens/s, "
        f"{result.regime}-bound ({REGIMES[result.regime]}: {result.predicted[result.regime] / result.latency_s:.0%}); "
        f"{seconds_text(result.graphed_s)} without launches; floor {seconds_text(result.floor_s)}",
        highlight=False,
    )
    if measured is not None:
        console.print(
            f"measured  [bold]{seconds_text(measured.median_s)}[/bold] [{seconds_text(measured.interval_s[0])}, "
            f"{seconds_text(measured.interval_s[1])}], {si(result.tokens / measured.median_s)} tokens/s; "
            f"the prediction is off by {result.latency_s / measured.median_s - 1:+.0%}",
            highlight=False,
        )
        if measured.disturbed:
            console.print("other processes took the cores: the measured times are too long", style="yellow")
    console.print(parts_table(result, measured, layers=layers))
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


def parts_table(result: Forward, measured: Measured | None = None, *, layers: bool = False) -> Table:
    """One row per kind of part, or per part, and the total."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part")
    names = "layer" if layers else "count"
    names += ",parameters,FLOPs,bytes,bytes as run,launches,floor,bound,predicted,share"
    for name in [*names.split(","), *(["measured", "predicted / measured"] if measured else [])]:
        table.add_column(name, justify="right")
    rows = [part.row() for part in result.parts] if layers else result.by_kind()
    taken = measured_by_kind(result, measured)
    if measured is not None:
        for row, value in zip(rows, measured.parts_s if layers else taken.values(), strict=True):
            row["measured_s"] = value
    summed = ("parameters", "tensor_flops", "vector_flops", "bytes", "run_bytes", "launches", "floor_s", "predicted_s")
    total = {name: sum(row[name] for row in rows) for name in (*summed, *(["measured_s"] if measured else []))}
    for row in [*rows, {"kind": "total", "bound": "", **total}]:
        place = row.get("layer" if layers else "count")
        cells = [
            row["kind"].replace("_", " "),
            "" if place is None else str(place),
            si(row["parameters"]),
            si(row["tensor_flops"] + row["vector_flops"]),
            gib(row["bytes"]),
            gib(row["run_bytes"]),
            str(row["launches"]),
            seconds_text(row["floor_s"]),
            row["bound"],
            seconds_text(row["predicted_s"]),
            f"{row['predicted_s'] / result.latency_s:.0%}",
        ]
        if measured:
            cells += [seconds_text(row["measured_s"]), f"{row['predicted_s'] / row['measured_s']:.2f}"]
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
            text = f"{seconds_text(point.predicted_s)} {SHORT[point.regime]}"
            cells.append(f"[red]{text} !{'[/red]'}" if point.fits is False else text)
        table.add_row(str(batch), *cells)
    console.print(table)
    used = {p.regime for p in points}
    key = ", ".join(f"{SHORT[name]} {name} ({text})" for name, text in REGIMES.items() if name in used)
    console.print(f"bound by: {key}" + ("; ! does not fit" if any(p.fits is False for p in points) else ""))


def show_names(console: Console, models: Mapping[str, GriffinConfig], sheets: Iterable[Datasheet]) -> None:
    """Presets with their sizes, and devices with their peaks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    for name in ("parameters", "without embedding", "layers", "width", "lru width", "heads", "window"):
        table.add_column(name, justify="right")
    for name, config in models.items():
        total = config.parameters()
        sizes = (config.num_layers, config.width, config.lru_width, config.num_heads, config.window)
        table.add_row(name, si(total), si(total - config.embedding_parameters()), *map(str, sizes))
    console.print(table)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("device")
    for name in ("memory", "bandwidth", "bf16", "fp16", "fp32"):
        table.add_column(name, justify="right")
    for sheet in sheets:
        peaks = [sheet.tensor_flops_per_s(dtype) for dtype in ("bfloat16", "float16", "float32")]
        told = ["-" if peak is None else si(peak, "FLOP/s") for peak in peaks]
        table.add_row(sheet.sku, gib(sheet.memory_bytes), si(sheet.dram_bytes_per_s, "B/s"), *told)
    console.print()
    console.print(table)


def show_study(console: Console, found: Study) -> None:
    """Passes that were run, predicted against measured."""
    for page in found.pages:
        if not page.measured:
            continue
        table = Table(
            box=None, pad_edge=False, header_style="bold", title=f"forward passes on {page.device}, {page.dtype}"
        )
        table.add_column("model")
        for name in ("phase", "batch", "seq", "predicted", "measured", "error", "tokens/s", "bound by"):
            table.add_column(name, justify="right")
        for row in page.passes:
            tokens = row.batch * (row.seq if row.phase == "prefill" else 1)
            cells = [row.model, row.phase, str(row.batch), str(row.seq), seconds_text(row.predicted_s)]
            if row.measured is None:
                cells += ["does not fit", "", si(tokens / row.predicted_s)]
            else:
                mark = " (busy)" if row.measured.disturbed else ""
                cells += [
                    seconds_text(row.measured.median_s) + mark,
                    f"{row.error:+.0%}",
                    si(tokens / row.measured.median_s),
                ]
            table.add_row(*cells, row.regime)
        console.print(table)


def show_kernels(console: Console, found: Study) -> None:
    """Tuned kernels against the ceilings, the one that loses most time first; then what fusing saves."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="tuned kernels by time lost")
    for name in ("op", "case", "variant", "bound by"):
        table.add_column(name, overflow="fold")
    for name in ("floor", "measured", "share", "lost"):
        table.add_column(name, justify="right")
    for row in found.kernels:
        times = (row.floors_s[row.bound], row.measured_s)
        table.add_row(
            row.op,
            row.case,
            row.variant,
            row.bound,
            *map(seconds_text, times),
            f"{row.share:.0%}",
            seconds_text(row.lost_s),
        )
    console.print(table)
    table = Table(box=None, pad_edge=False, header_style="bold", title="what fusing saves, at the ceilings")
    for name in ("op", "case"):
        table.add_column(name, overflow="fold")
    for name in ("bytes fused", "one by one", "ratio", "kernels", "time fused", "time one by one"):
        table.add_column(name, justify="right")
    for line in found.fusion:
        table.add_row(
            line.what, line.case, gib(line.fused_bytes), gib(line.unfused_bytes),
            f"{line.unfused_bytes / line.fused_bytes:.1f}x", str(line.unfused_launches),
            seconds_text(line.fused_s), seconds_text(line.unfused_s),
        )  # fmt: skip
    console.print(table)


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
