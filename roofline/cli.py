"""The commands under ``griffin roofline``. Importing this imports neither torch nor what draws reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from roofline import forward_cli
from roofline.console import StatusLine, output, plain_errors
from roofline.units import seconds_text, si

if TYPE_CHECKING:
    from griffin_kernels.device import Device
    from roofline.ceilings import Ceiling, Ceilings

app = typer.Typer(
    name="roofline",
    help="What the hardware allows: its ceilings, and what they make of a model.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group() -> None:
    """What the hardware allows: its ceilings, and what they make of a model."""


app.command()(forward_cli.forward)
app.command("list")(forward_cli.names)
app.command()(forward_cli.study)


@app.command()
def measure(
    out: Annotated[Path | None, typer.Option(help="The JSON file. In the user's data folder by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:<index>. The first GPU, else the CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Measure so often, and print how far the runs are apart.")] = 1,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Time to spend on sampling. 20 by default.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget earlier measurements. By default the best that was reached stands.")
    ] = False,
) -> None:
    """Measure the ceilings of this device: DRAM, cache, matrix products, multiply-adds, exp, launching."""
    stderr = Console(stderr=True)
    with plain_errors(stderr):
        forward_cli.finite(seconds or 0.0)
        from griffin_kernels import device as devices
        from roofline import measure as measuring
        from roofline import store
        from roofline.ceilings import Ceilings

        here = devices.detect(device)
        path = out.expanduser() if out is not None else store.default_path(here)
        store.prepare(path, here)
        spent = measuring.SECONDS if seconds is None else seconds
        runs: list[list[Ceiling]] = []
        try:
            for index in range(repeat):
                line = StatusLine(stderr, f"{here.name}: " + (f"run {index + 1} of {repeat}, " if repeat > 1 else ""))
                runs.append(measuring.measure(here, line.progress, spent))
                line.clear()
        except KeyboardInterrupt:
            stderr.print("interrupted; nothing was written", style="red", highlight=False)
            raise typer.Exit(130) from None
        kept: list[Ceiling] = []
        for index, found in enumerate(runs):
            kept = store.save(path, here, found, devices.provenance(here), fresh=fresh and index == 0)
        known = Ceilings(here.name, tuple(kept), here.last_level_cache_bytes)
        rows = _rows(known, _datasheet(here), runs)
        slow = measuring.disturbed(runs[-1])
        if as_json:
            answer = {"path": str(path), "device": here.validity(), "disturbed": slow, "ceilings": rows}
            typer.echo(json.dumps(answer, indent=1))
        else:
            _show(here, rows, path, repeat)
        if slow:
            text = f"other processes took the cores; measure again when they are done: {', '.join(slow)} are too low"
            stderr.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _datasheet(device: Device) -> Ceilings | None:
    from griffin_kernels import datasheet
    from roofline.ceilings import Ceilings

    sheet = datasheet.find(device.name)
    return None if sheet is None else Ceilings.from_datasheet(sheet)


def spread(values: Sequence[float]) -> float:
    """How far the largest value is above the smallest, as a share of the smallest."""
    return max(values) / min(values) - 1


def stated(name: str, sheet: Ceilings | None) -> Ceiling | None:
    """The datasheet's entry that a measured ceiling is to be held against; None where it has none."""
    if sheet is None:
        return None
    by_prefix = {"dram_": "dram", "special_": "special"}
    entry = next((peak for prefix, peak in by_prefix.items() if name.startswith(prefix)), name)
    found = sheet.ceiling(entry)
    return found if found is not None and found.origin == "datasheet" else None


def _rows(known: Ceilings, sheet: Ceilings | None, runs: Sequence[Sequence[Ceiling]]) -> list[dict[str, Any]]:
    """One row per ceiling, as printed and as JSON. ratio: measured over datasheet, whatever it is."""
    rows = []
    for ceiling in known.table:
        peak = stated(ceiling.name, sheet)
        values = [found.value for run in runs for found in run if found.name == ceiling.name]
        rows.append(
            {
                "name": ceiling.name,
                "unit": ceiling.unit,
                "value": ceiling.value,
                "low": ceiling.low,
                "high": ceiling.high,
                "samples": len(ceiling.samples),
                "source": ceiling.source,
                "datasheet": None if peak is None else peak.value,
                "ratio": None if peak is None else ceiling.value / peak.value,
                "runs": values,
                "spread": spread(values),
            }
        )
    return rows


def _told(value: float, unit: str) -> str:
    units = {"bytes_per_s": "B/s", "flops_per_s": "FLOP/s", "ops_per_s": "/s"}
    return seconds_text(value) if unit == "s" else si(value, units[unit])


def _show(device: Device, rows: Sequence[dict[str, Any]], path: Path, repeat: int) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ceiling", "measured", "95% interval", "datasheet", "of it", *(["spread"] if repeat > 1 else [])):
        table.add_column(heading, justify="left" if heading == "ceiling" else "right", no_wrap=True)
    for row in rows:
        unit, ratio = row["unit"], row["ratio"]
        above = " (above the datasheet)" if ratio is not None and ratio > 1 else ""
        cells = [
            row["name"],
            _told(row["value"], unit),
            f"{_told(row['low'], unit)} to {_told(row['high'], unit)}",
            "no peak known" if ratio is None else _told(row["datasheet"], unit),
            "" if ratio is None else f"{ratio:.0%}{above}",
        ]
        table.add_row(*cells, *([f"{row['spread']:.1%}"] if repeat > 1 else []))
    console = output()
    console.print(f"{device.name}, {device.arch}, {device.units} units", highlight=False)
    console.print(table, highlight=False)
    console.print(f"ceilings  {path}", highlight=False, markup=False, soft_wrap=True)
