"""``griffin tune predict`` and ``calibrate``. Importing this imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from roofline.console import StatusLine, output, plain_errors

if TYPE_CHECKING:
    from tuning.predict.calibrate import CaseFit, Compile
    from tuning.predict.target_space import TargetCandidate, TargetSpace
    from tuning.static.recorded import StaticReport
    from tuning.workers.compile_farm import LaunchRequest

TargetOption = Annotated[str, typer.Option(help="A SKU with a datasheet, such as nvidia-h100-sxm or amd-mi300x.")]
ConstantsOption = Annotated[
    Path | None, typer.Option(help="Constants of the model, as `griffin tune calibrate` writes them.")
]


def predict(
    op: Annotated[str, typer.Argument(help="An op, such as linear_scan.")],
    case: Annotated[str, typer.Argument(help="A bench case's key for GPUs, or a part that only one has.")],
    target: TargetOption,
    most: Annotated[int, typer.Option(help="Candidates to compile, the best estimates first; 0 for all.", min=0)] = 12,
    constants: ConstantsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Predict the candidates of one op and case on a GPU that need not be there."""
    with plain_errors(Console(stderr=True)):
        import msgspec

        from griffin_kernels import catalog, errors
        from tuning.plan import planner
        from tuning.predict import predictor as predicting
        from tuning.predict import time_model
        from tuning.predict.target_space import CandidateRecord

        where = time_model.machine(target)
        known = planner.bench_cases(catalog.op(op), where.device)
        keys = {found.key for found in known}
        chosen = [key for key in keys if key == case] or sorted(key for key in keys if case in key)
        if len(chosen) != 1:
            problem = "several cases match" if chosen else "no case matches"
            raise errors.ArgumentError(f"{problem} {case!r}: {', '.join(chosen or sorted(keys))}")
        options = planner.Options(ops=(op,), cases=(chosen[0],), budget="thorough")
        job = next(job for job in planner.make(options, where.device) if job.case.key == chosen[0])
        found = predicting.compiled_space(job, target, time_model.load_constants(constants), most=most)
        if as_json:
            told = [CandidateRecord.of(candidate, found) for candidate in found.candidates]
            sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
            return
        _show(output(), found, target)


def _show(console: Console, found: TargetSpace, target: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from roofline.units import seconds_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("candidate", "bound", "limited by"):
        table.add_column(name, overflow="fold")
    for name in ("predicted", "registers", "spills B", "waits", "shared B", "occupancy", "waves"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = found.choose()
    for candidate in found.ranked():
        prediction = candidate.prediction
        assert prediction is not None
        main = prediction.main
        marks = [mark for mark, on in (("chosen", candidate is chosen), ("default", candidate is found.default)) if on]
        table.add_row(
            Text(_name(candidate) + (f"  ({', '.join(marks)})" if marks else "")),
            prediction.bound,
            main.limit,
            seconds_text(prediction.seconds),
            str(main.registers),
            str(prediction.spill_bytes),
            f"{main.waits} of {main.products}" if main.waits else "-",
            str(main.shared_bytes),
            f"{main.occupancy:.0%}",
            f"{main.waves:.2f}",
            style="bold" if candidate is chosen else "red" if prediction.flawed else None,
        )
    console.print(
        f"{found.op.name} {found.case.key} on {target} ({found.where.arch}); nothing was run", highlight=False
    )
    console.print(table)
    dropped = [candidate for candidate in found.candidates if candidate.status == "dropped"]
    for candidate in dropped:
        _line(console, f"dropped: {_name(candidate)}: {candidate.reason}")
    for name, why in found.unfit.items():
        _line(console, f"cannot run: {name}: {why}")
    guessed = sum(candidate.status == "guessed" for candidate in found.candidates)
    if guessed:
        _line(console, f"{guessed} candidates with worse guesses were not compiled (--most 0 compiles all)")


def _name(candidate: TargetCandidate) -> str:
    from griffin_kernels.contract import config_key

    return f"{candidate.planned.variant.name} [{config_key(candidate.planned.config)}]"


def calibrate(
    journals: Annotated[list[Path], typer.Argument(help="Journals of `griffin tune` on one GPU.")],
    out: Annotated[Path | None, typer.Option(help="File for the fitted constants (JSON).")] = None,
    target: Annotated[
        str | None, typer.Option(help="The GPU's SKU, where the name in the journals does not tell.")
    ] = None,
    constants: ConstantsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Hold the static model against measurements of a GPU, and fit its constants to them."""
    with plain_errors(Console(stderr=True)):
        import msgspec

        from griffin_kernels.registry import write_atomically
        from tuning.predict import calibrate as calibrating
        from tuning.predict import time_model
        from tuning.record import journal

        lines = [record for path in journals for record in journal.read(path)]
        found = calibrating.calibrate(
            lines, _compiler(Console(stderr=True)), target, time_model.load_constants(constants)
        )
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, msgspec.json.format(msgspec.json.encode(found.constants), indent=1) + b"\n")
        if as_json:
            sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
            return
        console = output()
        _line(console, f"{found.samples} measured candidates on {found.sku}")
        for reason, count in found.unused.items():
            _line(console, f"not used: {count} {reason}")
        _fits(console, "with the constants so far", found.before)
        _fits(console, "with the fitted constants", found.after)
        _line(console, f"typical error of log time: {found.error_before:.3f} before, {found.error_after:.3f} after")
        for name, value in msgspec.to_builtins(found.constants).items():
            _line(console, f"  {name} = {value:.4g}")
        _line(console, f"constants {out}" if out else "--out FILE keeps these constants for --constants FILE")


def _fits(console: Console, title: str, rows: list[CaseFit]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("op", "case"):
        table.add_column(name, overflow="fold")
    for name in ("candidates", "rank correlation", "regret of best 1", "of best 5", "of best 10", "predicted/measured"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ranks = "" if row.spearman is None else f"{row.spearman:.2f}"
        regrets = [f"{row.regret[top]:.1%}" for top in sorted(row.regret)]
        table.add_row(row.op, row.case, str(row.candidates), ranks, *regrets, f"{row.off:.2f}")
    console.print(table)


def _compiler(console: Console) -> Compile:
    """Compiles on all cores, with a line that says how far it is."""
    from tuning.workers import compile_farm

    def compiled(requests: Mapping[str, LaunchRequest]) -> Mapping[str, StaticReport | str]:
        status = StatusLine(console)
        reports: dict[str, StaticReport | str] = {}
        for key, report in compile_farm.compile_all(list(requests.items())):
            reports[key] = report
            status.progress("compiling", len(reports) / len(requests))
        status.clear()
        return reports

    return compiled


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
