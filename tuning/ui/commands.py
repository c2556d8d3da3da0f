"""The subcommands of ``griffin tune``. Importing this imports no torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from griffin_kernels import errors
from roofline import shares
from roofline.console import DeviceOption, StatusLine, line, output, plain_errors, table
from roofline.units import seconds_text

if TYPE_CHECKING:
    from griffin_kernels.records import Entry
    from tuning.predict.calibrate import CaseFit
    from tuning.publish.diff import Diff

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]
ConstantsOption = Annotated[
    Path | None, typer.Option(help="Constants of the model, as `griffin tune calibrate` writes them.")
]


def _json(value: Any) -> None:
    typer.echo(json.dumps(msgspec.to_builtins(value), indent=1))


def _kernel(entry: Entry) -> str:
    from griffin_kernels.validity import quoted

    config = ",".join(f"{quoted(name)}={quoted(value)}" for name, value in entry.config.items())
    return f"{quoted(entry.variant)} [{config}]" if config else quoted(entry.variant)


@plain_errors()
def show(
    path: Annotated[
        Path | None, typer.Argument(help="A registry, or its folder. The one that is used on this device by default.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a registry's entries, and whether each is used here, stale, predicted or unused."""
    from griffin_kernels import device as devices
    from griffin_kernels import registry, validity
    from tuning.publish import show as showing
    from tuning.ui import progress

    here = devices.detect(device)
    found = showing.locate(path, here)
    file = registry.load(found)
    rows = showing.entries(file, here)
    if as_json:
        facts = msgspec.to_builtins(file)
        for entry, row in zip(facts["entries"], rows, strict=True):
            entry |= {"key": row.case, "state": row.state, "why": row.why}
        return _json({"path": str(found), **facts})
    console = output()
    line(console, f"{found}, of {validity.named(file.device.validity)}")
    drawn = table(["op", "case", "kernel"], ["time", "interval", "x baseline"], ["of its ceiling", "state", "date"])
    for row in rows:
        entry = row.entry
        time = entry.predicted_s if entry.status == "predicted" else entry.median_s
        interval = " - ".join(map(seconds_text, entry.interval_s)) if entry.interval_s else ""
        state = f"{row.state}: {row.why}" if row.why else row.state
        cells = [entry.op, row.case, _kernel(entry), seconds_text(time) if time is not None else "", interval]
        share = shares.share_text(entry.share_of_bound, entry.bound) + ("!" if progress.above(entry) else "")
        cells += ["" if entry.speedup is None else f"{entry.speedup:.2f}", share, state, entry.date[:10]]
        drawn.add_row(*map(Text, map(validity.quoted, cells)))
    console.print(drawn)
    for text in progress.above_lines([row.entry for row in rows]):
        line(console, validity.quoted(text, 300))
    line(console, f"{len(rows)} entries: {showing.counted(rows)}" if rows else "no entries")
    if ops := dict.fromkeys(row.entry.op for row in rows if row.state == "stale"):
        line(console, f"stale entries are used; `griffin tune --ops {','.join(ops)}` races them again")


@plain_errors()
def diff(
    a: Annotated[Path, typer.Argument(help="A registry, or its folder.")],
    b: Annotated[Path, typer.Argument(help="Another one, which is called FASTER or SLOWER than the first.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Leave with 1 if anything is SLOWER.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold two registries against each other, entry by entry: SAME, FASTER, SLOWER or UNSURE."""
    from griffin_kernels import device as devices
    from griffin_kernels import registry
    from tuning.publish import diff as differing
    from tuning.publish import show as showing

    here = devices.detect()
    paths = [showing.locate(path, here) for path in (a, b)]
    found = differing.diff(*(registry.load(path) for path in paths))
    if as_json:
        rows = [{"op": row.a.op, "case": row.a.case.key, **msgspec.to_builtins(row)} for row in found.rows]
        _json({**msgspec.to_builtins(found), "rows": rows, "agreement": found.agreement})
    else:
        _show_diff(output(), found, *paths)
    if exit_code and found.count("SLOWER"):
        raise typer.Exit(1)


def _show_diff(console: Console, found: Diff, a: Path, b: Path) -> None:
    line(console, f"A {a}\nB {b}\nB against A; the two were measured at different times")
    for note in found.notes:
        line(console, f"note: {note}", "yellow")
    drawn = table(["op", "case"], ["", "B / A", "95% interval"], ["kernel of A", "kernel of B"])
    for row in found.rows:
        interval = "" if row.interval is None else f"{row.interval[0]:.3f} - {row.interval[1]:.3f}"
        other = "same" if row.winner == "same" else f"{_kernel(row.b)}{' (tied)' if row.winner == 'tie' else ''}"
        ratio = row.why if row.ratio is None else f"{row.ratio:.3f}"
        cells = (row.a.op, row.a.case.key, row.verdict, ratio, interval, _kernel(row.a), other)
        drawn.add_row(*map(Text, cells))  # as they are: a name out of a file may look like markup
    if found.rows:
        console.print(drawn)
    for name, entries in (("A", found.only_a), ("B", found.only_b)):
        for entry in entries:
            line(console, f"only in {name}: {entry.op} {entry.case.key} {_kernel(entry)}")
    if found.agreement is None:
        return line(console, "no op and case is in both")
    counts = [f"{found.count(verdict)} {verdict}" for verdict in ("SAME", "FASTER", "SLOWER", "UNSURE")]
    line(console, f"{len(found.rows)} in both: {', '.join(counts)}")
    line(console, f"{found.agreeing} of {len(found.rows)} agree on the winner or tie ({found.agreement:.0%})")


@plain_errors()
def merge(
    registries: Annotated[list[Path], typer.Argument(help="Two or more registries of one device.")],
    out: Annotated[Path, typer.Option(help="The file to write; one of the registries, or a new one.")],
    rerace: Annotated[
        bool, typer.Option("--rerace", help="Print the commands that race again what they disagree on.")
    ] = False,
) -> None:
    """Make one registry of several: of each op and case the newest measurement. Disagreements are listed."""
    from griffin_kernels import device as devices
    from griffin_kernels import registry
    from tuning.publish import diff as differing
    from tuning.publish import show as showing

    if len(registries) < 2:
        raise errors.ArgumentError("merge needs at least two registries")
    here = devices.detect()
    paths = [showing.locate(path, here) for path in registries]
    out = out.expanduser()
    if out.is_dir():
        raise errors.ArgumentError(f"--out {out} is a folder; name a file in it")
    if out.exists() and not any(out.samefile(path) for path in paths if path.exists()):
        raise errors.ArgumentError(f"--out {out} exists and is not merged; merge it too, or name a new file")
    with registry.locked(out):
        file, conflicts = differing.merge([(path, registry.load(path)) for path in paths])
        registry.write(out, file)
    console = output()
    for conflict in conflicts:
        (path, kept), (other, dropped) = conflict
        why = "measured, not predicted" if kept.status != dropped.status else f"of {kept.date}, not {dropped.date}"
        tied = " (tied)" if differing.winner(kept, dropped) == "tie" else ""
        over = f"{_kernel(kept)} of {path} kept over {_kernel(dropped)} of {other}"
        line(console, f"{kept.op} {kept.case.key}: {over}{tied}: {why}")
    line(console, f"{len(file.entries)} entries, {len(conflicts)} disagreement{'' if len(conflicts) == 1 else 's'}")
    line(console, f"registry  {out}")
    if rerace:
        commands, others = differing.rerace(conflicts)
        for command in commands:
            line(console, command)
        for name in others:
            line(console, f"note: {name} is no bench case; record it as a miss and tune --from-misses", "yellow")


@plain_errors()
def export(
    journal: Annotated[
        Path | None, typer.Argument(help="A journal, or the folder of a run. This machine's last run by default.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="One line for each candidate.")] = False,
    t4: Annotated[bool, typer.Option("--t4", help="Kernel Tuner's results format, a file per op and case.")] = False,
    out: Annotated[Path | None, typer.Option(help="CSV file (standard output by default), or folder for T4.")] = None,
) -> None:
    """Write a journal as CSV or in the T4 format of auto-tuners."""
    from griffin_kernels import device as devices
    from griffin_kernels import registry
    from tuning.record import export as exporting
    from tuning.record import journal as journals
    from tuning.record.paths import Paths, make_folder

    if csv == t4:
        raise errors.ArgumentError("export needs one of --csv and --t4")
    if t4 and out is None:
        raise errors.ArgumentError("--t4 writes a file for each op and case; name a folder with --out")
    path = Paths.choose(None, devices.detect()).journal if journal is None else journal.expanduser()
    records = journals.read(path / journals.FILE_NAME if path.is_dir() else path)
    if out is None:
        typer.echo(exporting.to_csv(records), nl=False)
    elif t4:
        make_folder(out.expanduser())
        documents = exporting.t4(records)
        for name, document in documents.items():
            registry.write_atomically(out.expanduser() / name, json.dumps(document, indent=1).encode() + b"\n")
        line(output(), f"{len(documents)} files in {out}")
    else:
        registry.write_atomically(out.expanduser(), exporting.to_csv(records).encode())
        line(output(), str(out))


@plain_errors()
def doctor(device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Say what is wrong with this installation, machine and registry, and what to do. Leaves with 1 if anything is."""
    from tuning.doctor import examine

    found = examine(device or "")
    problems = sum(finding.level == "problem" for finding in found)
    if as_json:
        _json({"problems": problems, "findings": found})
    else:
        console, styles = output(), {"ok": "green", "note": "yellow", "problem": "red"}
        for finding in found:
            line(console, f"{finding.level:<8} {finding.area}: {finding.what}", styles[finding.level])
            if finding.fix and finding.level != "ok":
                line(console, f"{'':<8} -> {finding.fix}")
        verdict = {0: "nothing is wrong", 1: "1 problem"}.get(problems, f"{problems} problems")
        line(console, verdict, "red" if problems else "green")
    if problems:
        raise typer.Exit(1)


@plain_errors()
def predict(
    op: Annotated[str, typer.Argument(help="An op, such as linear_scan.")],
    case: Annotated[str, typer.Argument(help="A bench case's key for GPUs, or a part that only one has.")],
    target: Annotated[str, typer.Option(help="A SKU with a datasheet, such as nvidia-h100-sxm or amd-mi300x.")],
    most: Annotated[int, typer.Option(help="Candidates to compile, the best estimates first; 0 for all.", min=0)] = 12,
    constants: ConstantsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the candidates of one op and case on a GPU that need not be there."""
    from griffin_kernels import catalog
    from tuning.plan import planner
    from tuning.predict import predictor as predicting
    from tuning.predict import time_model

    device = time_model.machine(target).device
    key = planner.one_case(case, planner.bench_cases(catalog.op(op), device)).key
    jobs = planner.make(planner.Options(ops=(op,), cases=(key,), budget="thorough"), device)
    job = next(job for job in jobs if job.case.key == key)
    found = predicting.compiled_space(job, target, time_model.load_constants(constants), most=most)
    if as_json:
        return _json(found.records())
    console = output()
    headings = ["predicted", "registers", "spills B", "waits", "shared B", "occupancy", "waves"]
    drawn = table(["candidate", "bound", "limited by"], headings)
    chosen = found.choose()
    for candidate in found.ranked():
        prediction, main = candidate.predicted, candidate.predicted.main
        marks = [mark for mark, on in (("chosen", candidate is chosen), ("default", candidate is found.default)) if on]
        name = candidate.name + (f"  ({', '.join(marks)})" if marks else "")
        waits = f"{main.waits} of {main.products}" if main.waits else "-"
        figures = [seconds_text(prediction.seconds), str(main.registers), str(prediction.spill_bytes), waits]
        figures += [str(main.shared_bytes), f"{main.occupancy:.0%}", f"{main.waves:.2f}"]
        style = "bold" if candidate is chosen else "red" if prediction.flawed else None
        drawn.add_row(Text(name), prediction.bound, main.limit, *figures, style=style)
    line(console, f"{found.op.name} {found.case.key} on {target} ({found.where.arch}); nothing was run")
    console.print(drawn)
    for candidate in found.with_status("dropped"):
        line(console, f"dropped: {candidate.name}: {candidate.reason}")
    for name, why in found.unfit.items():
        line(console, f"cannot run: {name}: {why}")
    if guessed := len(found.with_status("guessed")):
        line(console, f"{guessed} candidates with worse guesses were not compiled (--most 0 compiles all)")


@plain_errors()
def calibrate(
    journals: Annotated[list[Path], typer.Argument(help="Journals of `griffin tune` on one GPU.")],
    out: Annotated[Path | None, typer.Option(help="File for the fitted constants (JSON).")] = None,
    target: Annotated[
        str | None, typer.Option(help="The GPU's SKU, where the name in the journals does not tell.")
    ] = None,
    constants: ConstantsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold the static model against measurements of a GPU, and fit its constants to them."""
    from griffin_kernels.registry import write_atomically
    from tuning.predict import calibrate as calibrating
    from tuning.predict import time_model
    from tuning.predict.predictor import compile_told
    from tuning.record import journal

    lines = [record for path in journals for record in journal.read(path)]
    compiler = functools.partial(compile_told, console=Console(stderr=True))
    found = calibrating.calibrate(lines, compiler, target, time_model.load_constants(constants))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, msgspec.json.format(msgspec.json.encode(found.constants), indent=1) + b"\n")
    if as_json:
        return _json(found)
    console = output()
    line(console, f"{found.samples} measured candidates on {found.sku}")
    for reason, count in found.unused.items():
        line(console, f"not used: {count} {reason}")
    _show_fits(console, "with the constants so far", found.before)
    _show_fits(console, "with the fitted constants", found.after)
    line(console, f"typical error of log time: {found.error_before:.3f} before, {found.error_after:.3f} after")
    for name, value in msgspec.to_builtins(found.constants).items():
        line(console, f"  {name} = {value:.4g}")
    line(console, f"constants {out}" if out else "--out FILE keeps these constants for --constants FILE")


def _show_fits(console: Console, title: str, rows: list[CaseFit]) -> None:
    figures = ["candidates", "rank correlation", "regret of best 1", "of best 5", "of best 10", "predicted/measured"]
    drawn = table(["op", "case"], figures, title=title)
    for row in rows:
        ranks = "" if row.spearman is None else f"{row.spearman:.2f}"
        regrets = [f"{row.regret[top]:.1%}" for top in sorted(row.regret)]
        drawn.add_row(row.op, row.case, str(row.candidates), ranks, *regrets, f"{row.off:.2f}")
    console.print(drawn)


@plain_errors()
def replay(
    journals: Annotated[
        list[Path] | None, typer.Argument(help="Packed journals or folders of them. The shipped ones by default.")
    ] = None,
    pack: Annotated[
        bool,
        typer.Option(
            "--pack", help="Take JOURNAL OUT: pack an exhaustive journal into a file per case, in folder OUT."
        ),
    ] = False,
    strategies: Annotated[str | None, typer.Option(help="Strategies, comma-separated. All by default.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Searches with other random choices and noisy measurements.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Judge search strategies on recorded exhaustive journals: % of the optimum after 10, 25, 50 evaluations, cost."""
    from tuning.replay import packed, simulate
    from tuning.search import strategies as searching

    paths = [path.expanduser() for path in journals or ()]
    if pack:
        if len(paths) != 2:
            raise errors.ArgumentError(
                f"--pack takes a journal and a folder, it was given {len(paths)} paths: "
                "griffin tune replay --pack JOURNAL OUT"
            )
        for each in packed.pack(paths[0]):
            line(output(), f"{packed.write(paths[1], each)}  {len(each.points)} points")
        return
    found = packed.read_all(paths) if paths else packed.shipped()
    names = [name.strip() for name in (strategies or "").split(",") if name.strip()] or searching.names()
    status = StatusLine(Console(stderr=True))
    rows = simulate.rows(found, [searching.named(name) for name in names], seeds, status)
    status.clear()
    if as_json:
        return _json(rows)
    simulate.show(output(), rows)
