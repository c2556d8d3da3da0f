"""``griffin roofline validate``: predictions held against published measurements. Needs no PyTorch."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from msgspec import to_builtins
from rich.console import Console

from roofline.console import line, output, plain_errors, table
from roofline.units import seconds_text
from roofline.validation import OUTLIER, Judged, Validation, by_gpu
from roofline.validation import validate as hold


def validate(
    gpu: Annotated[str | None, typer.Option(help="Only what is published of this SKU; `list` names them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold predictions against published measurements: kernels and models on named GPUs, row by row."""
    with plain_errors():
        found = hold(gpu)
        if as_json:
            typer.echo(json.dumps(plain(found), indent=1))
        else:
            show(output(), found)


def plain(found: Validation) -> dict[str, Any]:
    """Everything as plain values: what ``--json`` prints."""
    rows = [to_builtins(row) | {"ratio": row.ratio} for row in found.rows]
    return {"rows": rows, "totals": to_builtins(found.totals), "outliers": [row_name(row) for row in found.outliers]}


def row_name(row: Judged) -> str:
    """A row in words."""
    return f"{row.name} {row.size}, {row.dtype}, {row.gpu}"


def show(console: Console, found: Validation) -> None:
    """One table per GPU, the totals, then what is off and why."""
    for gpu, rows in by_gpu(found.rows).items():
        shown = table(["what", "size", "dtype"], ["published", "predicted", "ratio"], ["bound by"], title=gpu)
        for row in rows:
            told = [row.name + (" (weak)" if row.weak else ""), row.size, row.dtype]
            times = [seconds_text(row.published_s), seconds_text(row.predicted_s), f"{row.ratio:.2f}"]
            shown.add_row(*told, *times, row.bound, style="red" if row.error > OUTLIER else "")
        console.print(shown)
    columns = ["rows", "mean error", "median", "within 10%", "ratios", "rank correlation"]
    shown = table(["predicted / published"], columns)
    for name, total in found.totals.items():
        ranks = "" if total.spearman is None else f"{total.spearman:.3f}"
        span = f"{total.lowest_ratio:.2f} to {total.highest_ratio:.2f}"
        figures = [
            str(total.rows),
            f"{total.mape:.1%}",
            f"{total.median:.1%}",
            str(total.within_10_percent),
            span,
            ranks,
        ]
        shown.add_row(name, *figures)
    console.print(shown)
    for row in found.outliers:
        why = row.outlier or row.weak or "not explained"
        line(console, f"off by {row.ratio - 1:+.0%}: {row_name(row)}: {why}")
    line(
        console, "fitted GPUs gave fixed costs and bandwidths; constants of held-out GPUs come from other measurements"
    )
    line(console, "weak rows (unnamed GPU, old compiler, others' own kernels) are in no total but their own")
