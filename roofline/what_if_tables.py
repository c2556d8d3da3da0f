"""Answers for several devices and models as terminal tables. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import asdict
from rich.console import Console

from roofline.console import line, table
from roofline.units import seconds_text, si
from roofline.what_if import Comparison, DeviceAnswer, Question
from roofline.work import LENGTH_IS

FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "first_token_s": ("first token", seconds_text),
    "token_s": ("each token", seconds_text),
    "seconds": ("whole", seconds_text),
    "prefill_per_s": ("read/s", si),
    "decode_per_s": ("written/s", si),
    "tokens_per_s": ("tokens/s", si),
    "all_per_s": ("read + written/s", si),
    "cost_per_million": ("per 1M", lambda value: f"{value:.3g}"),
}
"""Field of a row -> heading, and how it is told."""

RATIOS = ("first_token_s", "token_s", "seconds", "tokens_per_s", "cost_per_million")
"""Fields that two models are compared by."""

BESIDE = ("first_token_s", "tokens_per_s")
"""Those of them that a table shows of both models."""

ALONE = ("prefill_per_s", "decode_per_s", "all_per_s")
"""Fields that a table has room for where there is one model."""

Row = DeviceAnswer | Comparison


def mine(row: Row) -> DeviceAnswer:
    """The row of the model that was asked about."""
    return row.answer if isinstance(row, Comparison) else row


def flat(row: Row) -> dict[str, Any]:
    """A row as plain values; the other model's with ``vs_`` before them, ratios with ``_ratio`` after."""
    if isinstance(row, DeviceAnswer):
        return asdict(row)
    other = {f"vs_{name}": value for name, value in asdict(row.versus).items() if name not in ("device", "dtype")}
    return asdict(row.answer) | other | {f"{name}_ratio": row.ratio(name) for name in RATIOS}


def show_answers(console: Console, question: Question, rows: Sequence[Row]) -> None:
    """One line for each device: what it takes, then why some do not run it."""
    first = rows[0]
    sizes = f"{question.phase} {LENGTH_IS[question.phase]} {question.seq} tokens"
    if question.request is not None:
        sizes = "requests of {} tokens and {} to write".format(*question.request)
    held = f", {question.weights} weights" if question.weights else ""
    other = first.versus.model if isinstance(first, Comparison) else ""
    against = f" against {other}" if other else ""
    dtypes = dict.fromkeys(mine(row).dtype for row in rows)
    same = f", {next(iter(dtypes))}" if len(dtypes) == 1 else ""
    line(console, f"{question.name}{against}, {sizes}{same}{held}; predicted, on GPUs from a captured CUDA graph")
    known = [name for name in FIGURES if any(getattr(mine(row), name) is not None for row in rows)]
    shown = [name for name in known if not (other and name in ALONE)]
    headings = [*(["dtype"] if len(dtypes) > 1 else []), "batch"]
    headings += [*([f"of {other}"] if other and question.batch is None else []), "memory"]
    for name in shown:
        headings.append(question.phase if name == "seconds" and question.request is None else FIGURES[name][0])
        headings += [other, "ratio"] if other and name in BESIDE else []
    drawn = table(["device"], headings, ["fits"])
    drawn.columns[0].no_wrap = True
    for row in rows:
        device, dtype, *cells = _cells(row, shown, question.batch is None)
        drawn.add_row(device, *([dtype] if len(dtypes) > 1 else []), *cells)
    console.print(drawn, highlight=False)
    for row in rows:
        for found in (row.answer, row.versus) if isinstance(row, Comparison) else (row,):
            if found.why:
                line(console, f"{found.device}, {found.model}: {found.why}", "yellow")


def _cells(row: Row, shown: Sequence[str], automatic: bool) -> list[str]:
    found = mine(row)
    other = row.versus if isinstance(row, Comparison) else None
    cells = [found.device, found.dtype, _batch(found), *([_batch(other)] if other and automatic else [])]
    known = [size for size in (found.needed_bytes, found.device_bytes) if size is not None]
    cells.append("{:.3g} of {:.3g} GB".format(*(size / 1e9 for size in known)) if len(known) == 2 else "-")
    for name in shown:
        values = [getattr(found, name), *([getattr(other, name)] if other and name in BESIDE else [])]
        cells += ["-" if value is None else FIGURES[name][1](value) for value in values]
        if isinstance(row, Comparison) and name in BESIDE:
            ratio = row.ratio(name)
            cells.append("-" if ratio is None else f"{ratio:.2f}x")
    return [*cells, {True: "yes", False: "no", None: "?"}[found.fits]]


def _batch(found: DeviceAnswer) -> str:
    """The batch, and what bounds it where it was asked for."""
    return "-" if found.batch is None else str(found.batch) + (f" ({found.bound})" if found.bound else "")
