"""The command line: ``griffin`` with its subcommands, and ``tune`` as a short name for ``griffin tune``."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from griffin_kernels import errors
from roofline import cli as roofline_cli
from roofline import model_bench_cli
from roofline.console import DeviceOption, line, plain_errors
from roofline.units import size
from tuning.ui import commands

PLAIN: dict[str, Any] = {
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "pretty_exceptions_enable": False,
}

app = typer.Typer(
    name="griffin",
    help="Tuned kernels for Griffin and Hawk models: tune this machine, then read the report.",
    no_args_is_help=True,
    **PLAIN,
)
app.add_typer(roofline_cli.app)
app.add_typer(model_bench_cli.app)
tune_app = typer.Typer(name="tune", invoke_without_command=True, **PLAIN)
app.add_typer(tune_app)


def _split(value: str | None) -> tuple[str, ...]:
    """``a,b`` -> ("a", "b")."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@tune_app.callback()
def tune(
    context: typer.Context,
    ops: Annotated[str | None, typer.Option(help="Ops, comma-separated. All by default.")] = None,
    cases: Annotated[
        str | None, typer.Option(help="Cases, comma-separated: parts of their keys, such as T4096 or 'B1-*-bfloat16'.")
    ] = None,
    dtypes: Annotated[str | None, typer.Option(help="Dtypes, comma-separated: float32, bfloat16, float16.")] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="quick, default (4 minutes on a small CPU, 21 on a large GPU, as planned) or thorough (everything)."
        ),
    ] = "default",
    device: DeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for journal, registry and report. The user's data folder by default.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Predict for a GPU that need not be there, by its SKU: nvidia-h100-sxm, ...")
    ] = None,
    constants: Annotated[
        Path | None, typer.Option(help="With --target: constants of `griffin tune calibrate`.")
    ] = None,
    from_misses: Annotated[
        Path | None, typer.Option(help="Tune the cases in a file that GRIFFIN_KERNELS_RECORD_MISSES recorded.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="End after these minutes: heavy ops first, publish what is decided; --resume goes on.")
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, if there is one.")] = False,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Search nothing: race what is published against every baseline, and go on in its journal.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Tune the I-th of N parts, such as 2/8, into an --out of its own; `griffin tune merge` after."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems and the final table only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events as JSON lines, and words for people on standard error.")
    ] = False,
    strategy: Annotated[str | None, typer.Option(help="Search strategy. By default what suits the space.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that any stage of a candidate may take before its process is killed.")
    ] = 120.0,
    memory: Annotated[
        str,
        typer.Option(help="What a candidate's process may hold, 8GiB or 8. By default, as 0, most of what is free."),
    ] = "0",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No worker processes, for debuggers: a crash ends the run.")
    ] = False,
    models: Annotated[
        bool | None,
        typer.Option(
            "--study/--no-study",
            help="Measure all ceilings and run whole models afterwards. By default where nothing was left out.",
        ),
    ] = None,
) -> None:
    """Find the fastest correct kernels for this device, publish them, study whole models, write the report."""
    if context.invoked_subcommand is not None:
        return
    # a pipe has no width: tables for people who read logs
    console = Console(width=None if sys.stdout.isatty() else 140)
    with plain_errors():
        from tuning.plan import planner
        from tuning.plan.sharding import WHOLE, Shard
        from tuning.ui import events, terminal

        options = planner.Options(
            ops=_split(ops), cases=_split(cases), dtypes=_split(dtypes), budget=budget, minutes=minutes,
            device=device or "", strategy=strategy or "", timeout=timeout,
            memory_gib=size(memory, "--memory", least=0) / 2**30,
            in_process=in_process, baselines=baselines, shard=WHOLE if shard is None else Shard.of(shard),
        )  # fmt: skip
        if from_misses is not None:
            from tuning.plan.from_misses import extended

            stderr = Console(stderr=True)
            options = extended(options, from_misses, lambda text: line(stderr, f"note: {text}", "yellow"))
        if options.shard.count > 1 and out is None and not dry_run:
            raise errors.ArgumentError(f"--shard {options.shard} needs an --out of its own: shards share no folder")
        if target is not None:
            return terminal.run_target(console, target, options, out, constants, dry_run)
        if dry_run and as_json:
            raise errors.ArgumentError("--dry-run has no --json; leave one of them out")
        if dry_run:
            terminal.show_plan(console, options, out)
            return
        # the words after ``griffin tune`` or ``tune``
        words = sys.argv[2:] if sys.argv[1:2] == ["tune"] else sys.argv[1:]
        command = shlex.join(["griffin", "tune", *(word for word in words if word != "--resume")])
        with events.own_output() if as_json else contextlib.nullcontext() as stream:
            output = terminal.RunOutput(Console(stderr=True) if as_json else console, quiet, stream)
            outcome = terminal.run(output, options, out, resume, command)
            if outcome is None or outcome.interrupted:
                terminal.ignore_interrupts()
                raise typer.Exit(130)
            studied = models or (models is None and outcome.whole)
            found = terminal.run_study(output, outcome) if studied else None
            from reports.build import write_report

            published = outcome.paths.registry if outcome.paths.registry.exists() else None
            report = write_report(outcome.paths.journal, outcome.paths.report, published)
            terminal.finish(output, outcome, report, found)


# subcommands of `griffin tune`
for command in (
    commands.show, commands.diff, commands.merge, commands.export, commands.doctor, commands.predict,
    commands.calibrate, commands.replay,
):  # fmt: skip
    tune_app.command(command.__name__)(command)


@app.command()
def report(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a run or of predictions, a journal, or a registry. This machine's last run by default."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file, or a folder for it. report.html beside the journal by default.")
    ] = None,
) -> None:
    """Write the HTML report of a run, finished or not, or of what `griffin tune --target` predicted."""
    with plain_errors():
        from griffin_kernels import device as devices
        from reports.build import write_predicted_report, write_report
        from reports.predicted import registry_in
        from tuning.record.journal import FILE_NAME
        from tuning.record.paths import Paths

        if out is not None and out.is_dir():
            out = out / "report.html"
        # a registry of predictions, or a journal
        journal = folder is None or folder.suffix == ".jsonl" or (folder / FILE_NAME).exists()
        if folder is not None and not journal and folder.exists() and (predicted := registry_in(folder)) is not None:
            line(Console(), str(write_predicted_report(predicted, out or predicted.with_suffix(".html"))))
            return
        if folder is not None and folder.is_file():
            paths = Paths(folder, folder.with_name("registry.json"), folder.with_suffix(".html"))
        else:
            paths = Paths.choose(folder, devices.detect())
        if not paths.journal.exists():
            raise errors.ReportError(f"there is no journal at {paths.journal}; `griffin tune` makes one ({FILE_NAME})")
        registry = paths.registry if paths.registry.exists() else None
        line(Console(), str(write_report(paths.journal, out or paths.report, registry)))


@app.command()
def explain(
    op: Annotated[str, typer.Argument(help="An op, such as linear_scan.")],
    case: Annotated[str, typer.Argument(help="A bench case's key, or a part that only one has.")],
    device: DeviceOption = None,
) -> None:
    """Say which kernel a case runs on, and why."""
    with plain_errors():
        import griffin_kernels
        from griffin_kernels import catalog
        from griffin_kernels import device as devices
        from tuning.plan import planner

        contract = catalog.op(op)
        named = next((c for c in contract.cases if c.key == case), None)
        found = named or planner.one_case(case, contract.cases_tagged("bench"))
        line(Console(), str(griffin_kernels.explain(op, found, devices.detect(device))))


def main() -> None:
    """Entry point of ``griffin``."""
    app()


def tune_main() -> None:
    """Entry point of ``tune``."""
    tune_app()
