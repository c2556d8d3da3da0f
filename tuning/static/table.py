"""Static reports as a table for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tuning.static.recorded import StaticReport

COLUMNS = (
    *("op", "variant", "case", "kernel", "target", "registers", "spills B", "shared B"),
    *("instr/elt", "special/elt", "loop", "loads by bits", "matrix", "waits", "async", "shuffles"),
    *("warnings of ptxas", "broken claims"),
)


def row(report: StaticReport) -> list[str]:
    """One report in the order of COLUMNS."""
    each, special = report.instructions_per_element, report.specials_per_element
    return [
        report.op,
        report.variant,
        report.case,
        report.kernel,
        report.target,
        str(report.registers),
        str(report.spill_bytes),
        str(report.shared_bytes),
        "-" if each is None else f"{each:.1f}",
        "-" if special is None else f"{special:.1f}",
        str(report.loop_instructions),
        " ".join(f"{count}x{bits}" for bits, count in report.load_bits.items()),
        str(report.mix["matrix"]),
        str(report.waits),
        str(report.mix["async_copies"]),
        str(report.mix["shuffles"]),
        "; ".join(report.warnings),
        "; ".join(report.broken),
    ]


def show(reports: Iterable[StaticReport]) -> None:
    """Print one row per kernel and target; red where a claim is broken."""
    shown = Table(*COLUMNS)
    for report in reports:
        shown.add_row(*row(report), style="red" if report.broken else None)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)
