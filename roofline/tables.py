"""Analyses as terminal tables (rich) and as CSV. Needs no PyTorch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from griffin_kernels.datasheet import Datasheet
from griffin_kernels.models.config import GriffinConfig
from roofline import kernel_shares
from roofline.console import line as say
from roofline.console import table
from roofline.flash import ATTENDING
from roofline.shares import NAMES, above_line
from roofline.study_records import REGIMES, GridPoint, Part, PassRecord, Study, Uncertainty
from roofline.target import MODES, AnalysisTarget
from roofline.training_records import TrainingFacts
from roofline.training_tables import held, lines
from roofline.units import gib, seconds_text, si
from roofline.work import LENGTH_IS

SHORT = {"parameters": "P", "cache": "C", "activations": "A", "compute": "F", "special": "S", "launch": "L"}
"""Letters of the regime map."""


def show(
    console: Console, record: PassRecord, target: AnalysisTarget, *, layers: bool = False, weights: str = ""
) -> None:
    """A pass: headline, one row per kind of part (or per part), where the time goes, memory, what it rests on."""
    first, *others = figures(record, target)
    holding = f" with {weights} weights" if weights else ""
    told = [
        f"[bold]{escape(record.model)}[/bold], {record.phase} {LENGTH_IS[record.phase]} {record.seq} tokens, "
        f"batch {record.batch}, {record.dtype}{holding}, on {target.name}: [bold]{first}[/bold]{rests_on(record)}",
        f"{'; '.join(others)}; {MODES[target.mode]} {record.regime}-bound "
        f"({REGIMES[record.regime]}: {record.regime_share:.0%})",
    ]
    if isinstance(record.uncertainty, Uncertainty):
        told.append(f"uncertainty of predictions: {record.uncertainty.text}")
    if record.measured is not None:
        low, high = map(seconds_text, record.measured.interval_s)
        told.append(
            f"measured  [bold]{seconds_text(record.seconds)}[/bold] [{low}, {high}], {si(record.rate)} tokens/s; "
            f"the prediction is off by {record.error:+.0%}"
        )
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)
    if record.measured is not None and record.measured.disturbed:
        console.print("other processes took the cores: the measured times are too long", style="yellow")
    console.print(parts_table(record, layers=layers))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in record.shares.items() if share > 0.005)
    console.print(f"time goes to: {shares}", highlight=False)
    memory, facts = record.memory, record.training
    if isinstance(facts, TrainingFacts):
        for text in lines(record, facts):
            console.print(text, highlight=False)
        what = held(record, facts)
    else:
        what = f"weights {gib(memory.weights)}, cache {gib(memory.cache)}, activations {gib(memory.activations)}"
    line = f"memory: {memory.sentence()} ({what})"
    if record.largest_batch is not None:
        line += f"; largest batch at this length {record.largest_batch}"
    console.print(line, style="red" if memory.fits is False else "", highlight=False)
    for sentence in target.assumptions:
        console.print(f"- {sentence}", style="dim", highlight=False)


def figures(record: PassRecord, target: AnalysisTarget) -> list[str]:
    """The predictions of a pass in words, the headline first: on a GPU a CUDA graph's, then eager, then the floor."""
    seconds: dict[str, float | None] = {f"predicted {MODES[target.mode]}": record.predicted_s}
    if target.mode != "compiled" and target.asynchronous:
        seconds = {f"predicted {MODES['graph']}": record.graphed_s, MODES["eager"]: record.eager_s}
    seconds["floor"] = record.floor_s
    return [
        f"{name} {si(record.tokens / taken)} tokens/s ({seconds_text(taken)})"
        for name, taken in seconds.items()
        if taken is not None
    ]


def rests_on(record: PassRecord) -> str:
    """What the prediction of this package's operations rests on, and which attention is assumed, in words."""
    words = []
    for op, how in record.tuned.items():
        name = "attention" if op in ATTENDING else op
        if how == "composed":
            words.append(f"{name} composed of PyTorch's kernels")
        else:
            words.append(f"{name} {how}" if how in kernel_shares.WORDS else f"{how} as published")
    return f"; {', '.join(dict.fromkeys(words))}, the rest PyTorch's kernels" if words else ""


def parts_table(record: PassRecord, *, layers: bool = False) -> Table:
    """One row per kind of part, or per part, and the total."""
    names = ["layer" if layers else "count", "parameters", "FLOPs", "bytes", "bytes as run", "launches", "floor"]
    names += ["bound", "predicted", "share", *(["measured", "predicted / measured"] if record.measured else [])]
    shown = table(["part"], names)
    rows = record.timed if layers else record.kinds
    total = Part.of(rows)
    for row in (*rows, total):
        place = row.layer if layers else row.count
        cells = [
            "total" if row is total else _named(row),
            "" if place is None or row is total else str(place),
            si(row.parameters), si(row.flops), gib(row.bytes), gib(row.run_bytes), str(row.launches),
            seconds_text(row.floor_s), "" if row is total else row.bound, seconds_text(row.predicted_s),
            f"{row.predicted_s / record.predicted_s:.0%}",
        ]  # fmt: skip
        if row.measured_s is not None:
            cells += [seconds_text(row.measured_s), f"{row.predicted_s / row.measured_s:.2f}"]
        shown.add_row(*cells, style="bold" if row is total else "")
    return shown


def _named(part: Part) -> str:
    """``mlp``, ``backward mlp``."""
    stage = "" if part.stage in (None, part.kind) else f"{part.stage} "
    return stage + part.kind.replace("_", " ")


def show_sweep(console: Console, points: Sequence[GridPoint]) -> None:
    """The regime map: batch down, length across; latency with the letter of what binds, and tokens/s."""
    batches, seqs = sorted({p.batch for p in points}), sorted({p.seq for p in points})
    by_place = {(p.batch, p.seq): p for p in points}
    first = points[0]
    told: dict[str, Callable[[GridPoint], str]] = {
        "latency": lambda point: f"{seconds_text(point.predicted_s)} {SHORT[point.regime]}",
        "tokens/s": lambda point: si(point.tokens_per_s),
    }
    for what, tell in told.items():
        title = f"{escape(first.model)}, {first.phase}: predicted {what}"
        console.print(title, style="italic", highlight=False, soft_wrap=True)
        shown = table([], ["batch \\ seq", *map(str, seqs)])
        for batch in batches:
            row = [by_place[batch, seq] for seq in seqs]
            cells = [f"[red]{tell(point)} ![/red]" if point.fits is False else tell(point) for point in row]
            shown.add_row(str(batch), *cells)
        console.print(shown)
    used = {p.regime for p in points}
    key = ", ".join(f"{SHORT[name]} {name} ({text})" for name, text in REGIMES.items() if name in used)
    console.print(f"bound by: {key}" + ("; ! does not fit" if any(p.fits is False for p in points) else ""))


def show_names(console: Console, models: Mapping[str, GriffinConfig], sheets: Iterable[Datasheet]) -> None:
    """Presets with their sizes, and devices with their peaks."""
    sizes_of = ("parameters", "without embedding", "layers", "width", "lru width", "heads", "window")
    shown = table(["model"], sizes_of)
    for name, config in models.items():
        total = config.parameters()
        sizes = (config.num_layers, config.width, config.lru_width, config.num_heads, config.window)
        shown.add_row(name, si(total), si(total - config.embedding_parameters()), *map(str, sizes))
    console.print(shown)
    shown = table(["device"], ("memory", "bandwidth", "bf16", "fp16", "fp32"))
    for sheet in sheets:
        peaks = [sheet.tensor_flops_per_s(dtype) for dtype in ("bfloat16", "float16", "float32")]
        told = ["-" if peak is None else si(peak, "FLOP/s") for peak in peaks]
        shown.add_row(sheet.sku, gib(sheet.memory_bytes), si(sheet.dram_bytes_per_s, "B/s"), *told)
    console.print()
    console.print(shown)


def show_study(console: Console, found: Study) -> None:
    """Passes that were run, predicted against measured."""
    for page in (page for page in found.pages if page.measured):
        names = ("phase", "batch", "seq", "predicted", "measured", "error", "tokens/s", "bound by")
        shown = table(["model"], names, title=f"forward passes on {page.device}, {page.dtype}")
        for row in page.passes:
            cells = [row.model, row.phase, str(row.batch), str(row.seq), seconds_text(row.predicted_s)]
            if row.measured is None:
                cells += ["does not fit", ""]
            else:
                mark = " (busy)" if row.measured.disturbed else ""
                cells += [seconds_text(row.seconds) + mark, f"{row.error:+.0%}"]
            cells.append(si(row.rate))
            shown.add_row(*cells, row.regime)
        console.print(shown)


def show_kernels(console: Console, found: Study) -> None:
    """Tuned kernels against the ceilings, the one that loses most time first; then what fusing saves."""
    names = ("op", "case", "variant", "bound by")
    shown = table(names, ("floor", "measured", "share", "lost"), title="tuned kernels by time lost")
    for row in found.kernels:
        floor, measured, lost = map(seconds_text, (row.floors_s[row.bound], row.measured_s, row.lost_s))
        share = f"{row.share:.0%}" + ("!" if row.share > 1 else "")
        shown.add_row(row.op, row.case, row.variant, NAMES.get(row.bound, row.bound), floor, measured, share, lost)
    console.print(shown)
    for row in found.kernels:
        if (text := above_line(row.op, row.case, row.share, row.bound, row.above)) is not None:
            say(console, text)
    columns = ("bytes fused", "one by one", "ratio", "kernels", "time fused", "time one by one")
    shown = table(("op", "case"), columns, title="what fusing saves, at the ceilings")
    for line in found.fusion:
        shown.add_row(
            line.what, line.case, gib(line.fused_bytes), gib(line.unfused_bytes),
            f"{line.unfused_bytes / line.fused_bytes:.1f}x", str(line.unfused_launches),
            seconds_text(line.fused_s), seconds_text(line.unfused_s),
        )  # fmt: skip
    console.print(shown)


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
