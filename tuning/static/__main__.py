"""``python -m tuning.static``: compile Triton variants for GPUs that are not here and print what the code costs.

Exits with 1 where something does not compile or does not keep its claims.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

os.environ.pop("TRITON_INTERPRET", None)  # before anything imports a kernel

import msgspec
import typer

from griffin_kernels import catalog, errors
from roofline.console import plain_errors
from tuning.static import defaults, recorded, table
from tuning.static.recorded import CompileRequest
from tuning.static.requests import compilable, representative, requests_for
from tuning.static.targets import CHECKED

SAVED_EVERY = 64
"""Requests after which the table is saved: a minute or two of compiling."""


@plain_errors()
def main(
    op: Annotated[str | None, typer.Option(help="only this op")] = None,
    variant: Annotated[str | None, typer.Option(help="only this variant, by key or name")] = None,
    targets: Annotated[str, typer.Option("--target", help="architectures, separated by commas")] = ",".join(CHECKED),
    every: Annotated[bool, typer.Option("--all-configs", help="every configuration, not only the default")] = False,
    untuned: Annotated[
        bool, typer.Option("--defaults", help="what runs untuned on the GPUs of the datasheets: shared memory only")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    jobs: Annotated[int, typer.Option(help="processes that compile; 0 for one per core")] = 0,
    save: Annotated[bool, typer.Option("--save", help="record the table where reports find it")] = False,
) -> None:
    """Compile and report."""
    names = [name.strip() for name in targets.split(",")]
    if untuned:
        broken = False
        for kernel, problem in defaults.defaults(names):
            broken |= bool(problem)
            print(f"{kernel}; {problem}" if problem else kernel, flush=True)
        raise typer.Exit(int(broken))
    if save and (op or variant or every or targets != ",".join(CHECKED)):
        raise errors.ArgumentError("--save records the whole table, so it takes no choice of what to compile")
    asked = [
        request
        for found in compilable(op, variant)
        for request in requests_for(found, representative(catalog.op(found.op).cases), names, every)
    ]
    if not asked:
        print("nothing to compile: no Triton variant fits", file=sys.stderr)
        raise typer.Exit(1)
    answers = _record(asked, jobs) if save else table.compile_all(asked, jobs)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
    else:
        table.show(answers.reports)
        for failure in answers.failures:
            print(f"{failure.request.variant} {failure.request.case.key} {failure.request.target}: {failure.reason}")
    if answers.failures or any(report.broken for report in answers.reports):
        raise typer.Exit(1)


def _record(asked: Sequence[CompileRequest], jobs: int) -> table.Answers:
    """Compile what is not recorded, and record it in steps: an interrupted run goes on where it was."""
    missing, reports = table.divide(asked)
    found = table.Answers(reports, [])
    print(f"{len(reports)} kernels are as recorded, {len(missing)} requests to compile", file=sys.stderr)
    for at in range(0, max(1, len(missing)), SAVED_EVERY):
        answers = table.compile_all(missing[at : at + SAVED_EVERY], jobs)
        found.reports += answers.reports
        found.failures += answers.failures
        table.record(found.reports)
        done = min(at + SAVED_EVERY, len(missing))
        print(f"{done} of {len(missing)} requests: {len(found.reports)} kernels in {recorded.FILE}", file=sys.stderr)
    return found


if __name__ == "__main__":
    typer.run(main)
