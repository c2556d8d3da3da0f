"""``python -m tuning.static``: compile Triton variants for GPUs that are not here and print what the code costs.

Exits with 1 where something does not compile or does not keep its claims.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

os.environ.pop("TRITON_INTERPRET", None)  # before anything imports a kernel

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from griffin_kernels import catalog
from griffin_kernels.contract import Case, config_dict
from tuning.static.report import Failure, Request, StaticReport, answer
from tuning.static.targets import CHECKED, target
from tuning.static.worker import Answers

COLUMNS = (
    *("op", "variant", "case", "kernel", "target", "registers", "spills B", "shared B"),
    *("instr/elt", "loop", "loads by bits", "async", "shuffles", "broken claims"),
)


def representative(cases: tuple[Case, ...]) -> Iterator[Case]:
    """The first bench case for a GPU of every dtype that has one."""
    seen = set()
    for case in cases:
        if case.tag == "bench" and case.where != "cpu" and case.dtype not in seen:
            seen.add(case.dtype)
            yield case


def requests_for(op_name: str | None, variant: str | None, targets: list[str], every: bool) -> Iterator[Request]:
    """Default configuration (or every one) x representative case x target of the Triton variants asked for."""
    for op in catalog.ops().values():
        if op_name not in (None, op.name):
            continue
        for found in catalog.variants(op.name).values():
            if found.launches is None or variant not in (None, found.key, found.name):
                continue
            for config in found.all_configs() if every else [found.config()]:
                for case in representative(op.cases):
                    for name in targets:
                        yield Request(found.key, case.key, config_dict(config), name)


def _row(report: StaticReport) -> list[str]:
    each = report.instructions_per_element
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
        str(report.loop_instructions),
        " ".join(f"{count}x{bits}" for bits, count in report.load_bits.items()),
        str(report.mix["async_copies"]),
        str(report.mix["shuffles"]),
        "; ".join(report.broken),
    ]


def table(answers: Answers) -> Table:
    """Reports as a table, one row per kernel and target."""
    shown = Table(*COLUMNS)
    for report in answers.reports:
        shown.add_row(*_row(report), style="red" if report.broken else None)
    return shown


def main(
    op: Annotated[str | None, typer.Option(help="only this op")] = None,
    variant: Annotated[str | None, typer.Option(help="only this variant, by key or name")] = None,
    targets: Annotated[str, typer.Option("--target", help="architectures, separated by commas")] = ",".join(CHECKED),
    every: Annotated[bool, typer.Option("--all-configs", help="every configuration, not only the default")] = False,
    requests: Annotated[str | None, typer.Option(help="a JSON file of requests; - reads standard input")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Compile and report."""
    if requests is not None:
        text = sys.stdin.buffer.read() if requests == "-" else Path(requests).read_bytes()
        asked = msgspec.json.decode(text, type=list[Request])
    else:
        asked = list(requests_for(op, variant, [name.strip() for name in targets.split(",")], every))
    found = [result for request in asked for result in answer(request, target(request.target))]
    answers = Answers(
        [result for result in found if isinstance(result, StaticReport)],
        [result for result in found if isinstance(result, Failure)],
    )
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
    else:
        Console(width=None if sys.stdout.isatty() else 240).print(table(answers))
        for failure in answers.failures:
            print(f"{failure.request.variant} {failure.request.case} {failure.request.target}: {failure.reason}")
    if answers.failures or any(report.broken for report in answers.reports):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
