"""Static reports as a table for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tuning.static.recorded import StaticReport


def row(report: StaticReport) -> dict[str, str]:
    """One report by column."""
    each, special = report.instructions_per_element, report.specials_per_element
    return {
        **{name: getattr(report, name) for name in ("op", "variant", "case", "kernel", "target")},
        "registers": str(report.registers),
        "spills B": str(report.spill_bytes),
        "shared B": str(report.shared_bytes),
        "instr/elt": "-" if each is None else f"{each:.1f}",
        "special/elt": "-" if special is None else f"{special:.1f}",
        "loop": str(report.loop_instructions),
        "loads by bits": " ".join(f"{count}x{bits}" for bits, count in report.load_bits.items()),
        "matrix": str(report.mix["matrix"]),
        "waits": str(report.waits),
        "async": str(report.mix["async_copies"]),
        "shuffles": str(report.mix["shuffles"]),
        "warnings of ptxas": "; ".join(report.warnings),
        "broken claims": "; ".join(report.broken),
    }


def show(reports: Iterable[StaticReport]) -> None:
    """Print one row per kernel and target; red where a claim is broken."""
    shown = Table()
    for report in reports:
        cells = row(report)
        if not shown.columns:
            for name in cells:
                shown.add_column(name)
        shown.add_row(*cells.values(), style="red" if report.broken else None)
    Console(width=None if sys.stdout.isatty() else 240).print(shown)
