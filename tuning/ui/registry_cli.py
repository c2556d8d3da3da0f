"""``griffin tune show``, ``diff``, ``merge``, ``export`` and ``doctor``. Importing this imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from roofline.console import output, plain_errors
from roofline.units import seconds_text

if TYPE_CHECKING:
    from rich.table import Table

    from griffin_kernels.records import Entry
    from tuning.doctor.finding import Finding
    from tuning.publish.diff import Diff
    from tuning.publish.merge import Conflict

DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:<index>: the device to judge for. The first GPU, else the CPU.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _table(left: Sequence[str], right: Sequence[str] = (), last: Sequence[str] = ()) -> Table:
    """Columns by heading: names that may fold, numbers, then words."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _kernel(entry: Entry) -> str:
    from griffin_kernels.validity import quoted

    config = ",".join(f"{quoted(name)}={quoted(value)}" for name, value in entry.config.items())
    return f"{quoted(entry.variant)} [{config}]" if config else quoted(entry.variant)


def _cell(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a name out of a file may look like markup


def show(
    path: Annotated[
        Path | None, typer.Argument(help="A registry, or its folder. The one that is used on this device by default.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a registry's entries, and whether each is used here, stale, predicted or unused."""
    with plain_errors():
        from griffin_kernels import device as devices
        from griffin_kernels import registry, validity
        from tuning.publish import show as showing

        here = devices.detect(device)
        found = showing.first_source(here) if path is None else showing.locate(path, here)
        file = registry.load(found)
        rows = showing.entries(file, here)
        if as_json:
            typer.echo(json.dumps(showing.plain(found, file, rows), indent=1))
            return
        console = output()
        _line(console, f"{found}, of {validity.named(file.device.validity)}")
        table = _table(["op", "case", "kernel"], ["time", "interval", "x baseline"], ["state", "date"])
        for row in rows:
            entry = row.entry
            time = entry.predicted_s if entry.status == "predicted" else entry.median_s
            interval = " - ".join(map(seconds_text, entry.interval_s)) if entry.interval_s else ""
            state = f"{row.state}: {row.why}" if row.why else row.state
            cells = [entry.op, row.case, _kernel(entry), seconds_text(time) if time is not None else "", interval]
            cells += ["" if entry.speedup is None else f"{entry.speedup:.2f}", state, entry.date[:10]]
            table.add_row(*map(_cell, map(validity.quoted, cells)))
        console.print(table)
        counts = {state: sum(row.state == state for row in rows) for state in ("used", "stale", "predicted", "unused")}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        _line(console, f"{len(rows)} entries: {told}" if rows else "no entries")
        ops = dict.fromkeys(row.entry.op for row in rows if row.state == "stale")
        if ops:
            _line(console, f"stale entries are used; `griffin tune --ops {','.join(ops)}` races them again")


def diff(
    a: Annotated[Path, typer.Argument(help="A registry, or its folder.")],
    b: Annotated[Path, typer.Argument(help="Another one, which is called FASTER or SLOWER than the first.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Leave with 1 if anything is SLOWER.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold two registries against each other, entry by entry: SAME, FASTER, SLOWER or UNSURE."""
    with plain_errors():
        from griffin_kernels import device as devices
        from griffin_kernels import registry
        from tuning.publish import diff as differing
        from tuning.publish import show as showing

        here = devices.detect()
        paths = [showing.locate(path, here) for path in (a, b)]
        found = differing.diff(*(registry.load(path) for path in paths))
        if as_json:
            typer.echo(json.dumps(_diff_plain(found), indent=1))
        else:
            _show_diff(output(), found, *paths)
        if exit_code and found.count("SLOWER"):
            raise typer.Exit(1)


def _diff_plain(found: Diff) -> dict[str, Any]:
    import msgspec

    rows = [
        {
            "op": row.a.op,
            "case": row.case.key,
            "verdict": row.verdict,
            "ratio": row.ratio,
            "interval": row.interval,
            "winner": row.winner,
            "why": row.why,
            "a": msgspec.to_builtins(row.a),
            "b": msgspec.to_builtins(row.b),
        }
        for row in found.rows
    ]
    only = {name: [msgspec.to_builtins(e) for e in getattr(found, name)] for name in ("only_a", "only_b")}
    return {"rows": rows, **only, "agreement": found.agreement, "notes": list(found.notes)}


def _show_diff(console: Console, found: Diff, a: Path, b: Path) -> None:
    _line(console, f"A {a}\nB {b}\nB against A; the two were measured at different times")
    for note in found.notes:
        _line(console, f"note: {note}", "yellow")
    table = _table(["op", "case"], ["", "B / A", "95% interval"], ["kernel of A", "kernel of B"])
    for row in found.rows:
        interval = "" if row.interval is None else f"{row.interval[0]:.3f} - {row.interval[1]:.3f}"
        other = "same" if row.winner == "same" else f"{_kernel(row.b)}{' (tied)' if row.winner == 'tie' else ''}"
        ratio = row.why if row.ratio is None else f"{row.ratio:.3f}"
        table.add_row(*map(_cell, (row.a.op, row.case.key, row.verdict, ratio, interval, _kernel(row.a), other)))
    if found.rows:
        console.print(table)
    for name, entries in (("A", found.only_a), ("B", found.only_b)):
        for entry in entries:
            _line(console, f"only in {name}: {entry.op} {entry.case.key} {_kernel(entry)}")
    counts = [f"{found.count(verdict)} {verdict}" for verdict in ("SAME", "FASTER", "SLOWER", "UNSURE")]
    if found.agreement is None:
        _line(console, "no op and case is in both")
        return
    _line(console, f"{len(found.rows)} in both: {', '.join(counts)}")
    agreeing = sum(row.winner != "other" for row in found.rows)
    _line(console, f"{agreeing} of {len(found.rows)} agree on the winner or tie ({found.agreement:.0%})")


def merge(
    registries: Annotated[list[Path], typer.Argument(help="Two or more registries of one device.")],
    out: Annotated[Path, typer.Option(help="The file to write; one of the registries, or a new one.")],
    rerace: Annotated[
        bool, typer.Option("--rerace", help="Print the commands that race again what they disagree on.")
    ] = False,
) -> None:
    """Make one registry of several: of each op and case the newest measurement. Disagreements are listed."""
    with plain_errors():
        from griffin_kernels import device as devices
        from griffin_kernels import errors, registry
        from tuning.publish import merge as merging
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
            merged = merging.merge([(path, registry.load(path)) for path in paths])
            registry.write(out, merged.file)
        console = output()
        for conflict in merged.conflicts:
            _line(console, _conflict(conflict))
        count = len(merged.conflicts)
        _line(console, f"{len(merged.file.entries)} entries, {count} disagreement{'' if count == 1 else 's'}")
        _line(console, f"registry  {out}")
        if rerace:
            commands, others = merging.rerace(merged.conflicts)
            for command in commands:
                _line(console, command)
            for name in others:
                _line(console, f"note: {name} is no bench case; record it as a miss and tune --from-misses", "yellow")


def _conflict(conflict: Conflict) -> str:
    (path, kept), (other, dropped) = conflict.kept, conflict.dropped
    why = "measured, not predicted" if kept.status != dropped.status else f"of {kept.date}, not {dropped.date}"
    tied = " (tied)" if conflict.tied else ""
    over = f"{_kernel(kept)} of {path} kept over {_kernel(dropped)} of {other}"
    return f"{conflict.op} {conflict.case}: {over}{tied}: {why}"


def export(
    journal: Annotated[
        Path | None, typer.Argument(help="A journal, or the folder of a run. This machine's last run by default.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="One line for each candidate.")] = False,
    t4: Annotated[bool, typer.Option("--t4", help="Kernel Tuner's results format, a file per op and case.")] = False,
    out: Annotated[Path | None, typer.Option(help="CSV file (standard output by default), or folder for T4.")] = None,
) -> None:
    """Write a journal as CSV or in the T4 format of auto-tuners."""
    with plain_errors():
        from griffin_kernels import errors, registry
        from tuning.record import export as exporting
        from tuning.record import journal as journals

        if csv == t4:
            raise errors.ArgumentError("export needs one of --csv and --t4")
        if t4 and out is None:
            raise errors.ArgumentError("--t4 writes a file for each op and case; name a folder with --out")
        records = journals.read(_journal(journal))
        if t4 and out is not None:
            paths = exporting.write_t4(records, out.expanduser())
            _line(output(), f"{len(paths)} files in {out}")
            return
        text = exporting.to_csv(records)
        if out is None:
            typer.echo(text, nl=False)
        else:
            registry.write_atomically(out.expanduser(), text.encode())
            _line(output(), str(out))


def _journal(given: Path | None) -> Path:
    from griffin_kernels import device as devices
    from tuning.record.journal import FILE_NAME
    from tuning.run import Paths

    if given is None:
        return Paths.choose(None, devices.detect()).journal
    given = given.expanduser()
    return given / FILE_NAME if given.is_dir() else given


def doctor(
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:<index>: whose registry. The first GPU, else the CPU.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with this installation, machine and registry, and what to do. Leaves with 1 if anything is."""
    with plain_errors():
        from tuning.doctor import checks as examining

        found = examining.examine(device or "")
        problems = [finding for finding in found if finding.level == "problem"]
        if as_json:
            import dataclasses

            plain = [dataclasses.asdict(finding) for finding in found]
            typer.echo(json.dumps({"problems": len(problems), "findings": plain}, indent=1))
        else:
            _show_findings(output(), found, len(problems))
        if problems:
            raise typer.Exit(1)


def _show_findings(console: Console, found: Sequence[Finding], problems: int) -> None:
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in found:
        _line(console, f"{finding.level:<8} {finding.area}: {finding.what}", styles[finding.level])
        if finding.fix and finding.level != "ok":
            _line(console, f"{'':<8} -> {finding.fix}")
    verdict = {0: "nothing is wrong", 1: "1 problem"}.get(problems, f"{problems} problems")
    _line(console, verdict, "red" if problems else "green")
