"""The commands under ``griffin roofline``. Importing this imports neither torch nor what draws reports."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs, to_builtins
from rich.console import Console

from griffin_kernels import datasheet, errors
from griffin_kernels.models.presets import PRESETS
from roofline import forward_cli as words
from roofline import tables, units, validation_cli
from roofline.ceilings import Ceiling, Ceilings, peak
from roofline.console import DeviceOption, StatusLine, line, output, plain_errors, table
from roofline.forward import analyse, sweep
from roofline.study_records import PassRecord
from roofline.target import AnalysisTarget
from roofline.training_work import TrainingPlan
from roofline.units import seconds_text, si, units_text
from roofline.validation import of_pass
from roofline.what_if import largest_batch
from roofline.work import LARGEST

if TYPE_CHECKING:
    from griffin_kernels.device import Device

app = typer.Typer(
    name="roofline",
    help="What the hardware allows: its ceilings, and what they make of a model.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _finite(seconds: float) -> None:
    """Raise ArgumentError for times that never end."""
    if not math.isfinite(seconds):
        raise errors.ArgumentError(f"--seconds is {seconds}, expected a finite number")


@app.command()
def forward(
    model: Annotated[
        str, typer.Option(help="A preset such as griffin-1b3, a folder, a config.json, or an id in the hub's cache.")
    ],
    phase: Annotated[str, typer.Option(help="prefill, decode of one token, or train: one step.")] = "prefill",
    batch: Annotated[
        str | None, typer.Option(help="Sequences, 1 by default; auto: the most within memory and --latency.")
    ] = None,
    seq: Annotated[
        str, typer.Option(help="Tokens of the prompt, 2048 or 2k; in decode, tokens in the cache already.")
    ] = "2048",
    recompute: Annotated[
        str | None, typer.Option(help="In training: none, blocks, or selective, all but what mixes time.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="In training: adamw, or adamw-master, with float32 weights beside 16 bits.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16. bf16 by default, fp32 on this machine's CPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="SKUs such as nvidia-h100-sxm, comma-separated; cpu; cuda. This machine's else.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="What linear layers hold: int8, int4 or fp8.")] = None,
    request: Annotated[
        str | None, typer.Option(help="Whole requests, as 2048+256: tokens of the prompt + tokens to write.")
    ] = None,
    versus: Annotated[
        str | None, typer.Option("--vs", help="Another model beside it; mqa: the Transformer of its size.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="The most that a pass, or the last token of a request, may take: 50ms.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory that may be used, 40GB or 8GiB. All of the device's by default.")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="Price of an hour of a device, or of each, as 2.5,1.9: tells what tokens cost.")
    ] = None,
    run: Annotated[bool, typer.Option("--measure", help="Run it on this machine as well, where it fits.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for --measure.")] = 4.0,
    axes: Annotated[
        str | None, typer.Option("--sweep", help="batch, seq or batch,seq: a map of what binds where.")
    ] = None,
    batches: Annotated[str | None, typer.Option(help="Batches of a sweep, comma-separated.")] = None,
    seqs: Annotated[str | None, typer.Option(help="Lengths of a sweep, comma-separated.")] = None,
    attention: Annotated[
        str,
        typer.Option(help="Global attention on a GPU: flash, as published, or composed of PyTorch's kernels."),
    ] = "flash",
    layers: Annotated[bool, typer.Option("--layers", help="One row for each layer, not for each kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row for each part, point or device.")] = False,
) -> None:
    """What a model takes on a device: FLOPs, bytes, what binds, latency, tokens/s, memory, cost."""
    with plain_errors():
        _exclude({"--json": as_json, "--csv": as_csv})
        _exclude({"--sweep": axes, "--measure": run})
        several = {"--request": request, "--vs": versus, "--price": price, "several devices": "," in (device or "")}
        for flag, given in {"--measure": run, "--sweep": axes, "--layers": layers}.items():
            for other, named in several.items():
                _exclude({flag: given, other: named})
        _exclude({"--measure": run, "--weights": weights})
        _finite(seconds)
        training = TrainingPlan.of(phase, recompute, optimizer)
        question = words.question_of(model, phase, batch, seq, weights, latency, request, training)
        number = words.dtype_of(dtype)
        beside = words.versus_of(versus, question)
        prices = words.prices_of(price, (device or "").count(",") + 1)
        sizes = words.axes_of(axes, question, batches, seqs) if axes is not None else None
        places = words.places_of(device, number, memory, attention)
        how = "json" if as_json else "csv" if as_csv else "table"
        if any(several.values()):
            words.show_compared(question, places, prices, beside, how)
            return
        (place,) = places
        here, target, number = place.here, place.target, place.dtype
        if run and here is None:
            raise errors.DeviceError(f"--measure runs on this machine, not on {device}; leave --device out")
        same: dict[str, Any] = {"phase": question.phase, "dtype": number, "name": question.name}
        same |= {"weights": question.weights, "training": question.training}
        if sizes is not None:
            points = sweep(question.model, target, batches=sizes[0], seqs=sizes[1], **same)
            if as_json:
                typer.echo(json.dumps(to_builtins(points), indent=1))
            elif as_csv:
                typer.echo(tables.to_csv(to_builtins(points)), nl=False)
            else:
                tables.show_sweep(output(), points)
            return
        largest = None
        if question.batch is None:
            largest = largest_batch(question, target, number)
            bounded = largest.sentence(target.memory_bytes, question.latency_s)
            if not largest.batch:
                raise errors.ArgumentError(f"--batch auto: {bounded}")
        sequences = largest.batch if largest else question.batch or 1
        found = analyse(question.model, target, batch=sequences, seq=question.seq, **same)
        record = found.record
        if here is None:
            seen = of_pass(target.name, question.phase, number, quantised=bool(found.weights))
            record = structs.replace(record, uncertainty=seen)
        if run and here is not None:
            timing: Any = importlib.import_module(
                "roofline." + ("training_timing" if question.training else "pass_timing")
            )
            status = StatusLine(Console(stderr=True))
            status(f"building {question.name}")
            built = timing.build(found, here)
            status(f"running {question.name}")
            record = structs.replace(record, measured=timing.measure(built, record, here, seconds))
            status.clear()
        if as_json:
            told = _plain(record, found.target) | ({"weights": found.weights} if found.weights else {})
            typer.echo(json.dumps(told | ({"bound": largest.bound} if largest else {}), indent=1))
        elif as_csv:
            typer.echo(tables.to_csv(to_builtins(record.timed)), nl=False)
        else:
            tables.show(output(), record, found.target, layers=layers, weights=found.weights)
            if largest:
                line(output(), bounded)


def _exclude(flags: Mapping[str, object]) -> None:
    """Raise ArgumentError where two flags are given that exclude each other."""
    given = [flag for flag, value in flags.items() if value]
    if len(given) > 1:
        raise errors.ArgumentError(f"{given[0]} and {given[1]} exclude each other; leave one of them out")


@app.command("list")
def names() -> None:
    """List the models and devices that ``forward`` knows."""
    with plain_errors():
        tables.show_names(output(), PRESETS, [datasheet.datasheet(sku) for sku in datasheet.skus()])


def _plain(record: PassRecord, target: AnalysisTarget) -> dict[str, Any]:
    """Everything as plain values: what ``--json`` prints."""
    whole = record.whole
    summed = ("tensor_flops", "vector_flops", "special_ops", "bytes", "run_bytes", "launches")
    told = to_builtins(record) | {name: getattr(whole, name) for name in summed}
    told |= {"device": target.name, "regime_share": record.regime_share, "assumptions": target.assumptions}
    told["parts"] = to_builtins(record.timed)
    return {name: value for name, value in told.items() if (name, value) != ("measured", None)}


app.command()(validation_cli.validate)


@app.command()
def study(
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; in the user's data folder by default. Of figures, a folder too.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:<index>; the first GPU, else the CPU. Of figures, SKUs, comma-separated."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for all passes that are run; of figures, for each.")
    ] = 60.0,
    figure: Annotated[
        str | None,
        typer.Option(help="Figures of the Griffin paper, in place of a study: 1b, 3, 4, 8, context; or all."),
    ] = None,
    context: Annotated[bool, typer.Option("--context", help="Short for --figure context: a million tokens.")] = False,
    run: Annotated[bool, typer.Option("--measure", help="Measure the figures on this machine as well.")] = False,
    seqs: Annotated[str | None, typer.Option(help="Lengths on a figure's axis, in place of the paper's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of figures: fp32, bf16 or fp16. bf16 but on a CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Measure the ceilings, run the preset models, predict them for an H100 too, and record it all for the report.

    With --figure: the figures of arXiv 2402.19427 on any device, and what its text says of them as pass or fail.
    """
    with plain_errors():
        _finite(seconds)
        if figure is not None or context:
            from roofline.figures_cli import run_figures

            wanted = ",".join(part for part in (figure, "context" if context else None) if part is not None)
            lengths = None if seqs is None else units.counts(seqs, "--seqs", LARGEST)
            run_figures(wanted, device, lengths, words.dtype_of(dtype), seconds if run else None, out, as_json)
            return
        if run or as_json or seqs is not None or dtype is not None:
            raise errors.ArgumentError("--measure, --json, --seqs and --dtype belong to --figure or --context")
        from griffin_kernels import device as devices
        from griffin_kernels.registry import load_for, sources
        from roofline import store
        from roofline import study as studying

        here = devices.detect(device)
        path = out.expanduser() if out is not None else store.default_path(here, "studies")
        # of the user's registry, or of the one that ships: the first source that there is
        entries = next((load_for(source, here).entries for source in sources(here)), [])
        status = StatusLine(Console(stderr=True))
        found = studying.record(path, here, entries, studying.Timing(seconds=seconds), status)
        status.clear()
        tables.show_kernels(output(), found)
        tables.show_study(output(), found)
        line(output(), f"study     {path}")


@app.command()
def measure(
    out: Annotated[Path | None, typer.Option(help="The JSON file. In the user's data folder by default.")] = None,
    device: DeviceOption = None,
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
        _finite(seconds or 0.0)
        from griffin_kernels import device as devices
        from roofline import measure as measuring
        from roofline import store

        here = devices.detect(device)
        path = out.expanduser() if out is not None else store.default_path(here)
        store.prepare(path, here)
        spent = measuring.SECONDS if seconds is None else seconds
        runs: list[list[Ceiling]] = []
        try:
            for index in range(repeat):
                status = StatusLine(stderr, f"{here.name}: " + (f"run {index + 1} of {repeat}, " if repeat > 1 else ""))
                runs.append(measuring.measure(here, status.progress, spent))
                status.clear()
        except KeyboardInterrupt:
            line(stderr, "interrupted; nothing was written", "red")
            raise typer.Exit(130) from None
        kept: list[Ceiling] = []
        for index, found in enumerate(runs):
            kept = store.save(path, here, found, devices.provenance(here), fresh=fresh and index == 0)
        known = Ceilings(here.name, tuple(kept), here.last_level_cache_bytes)
        sheet = datasheet.find(here.name)
        rows = _rows(known, Ceilings.from_datasheet(sheet).table if sheet else (), runs)
        slow = [found.name for found in runs[-1] if found.source.endswith(measuring.DISTURBED)]
        if as_json:
            answer = {"path": str(path), "device": here.validity(), "disturbed": slow, "ceilings": rows}
            typer.echo(json.dumps(answer, indent=1))
        else:
            _show(here, rows, path, repeat)
        if slow:
            text = f"other processes took the cores; measure again when they are done: {', '.join(slow)} are too low"
            line(stderr, text, "yellow")


def spread(values: Sequence[float]) -> float:
    """How far the largest value is above the smallest, as a share of the smallest."""
    return max(values) / min(values) - 1


def _rows(known: Ceilings, stated: Sequence[Ceiling], runs: Sequence[Sequence[Ceiling]]) -> list[dict[str, Any]]:
    """One row per ceiling, as printed and as JSON. ratio: measured over datasheet, whatever it is."""
    rows = []
    for ceiling in known.table:
        top = peak(ceiling.name, stated)
        values = [found.value for run in runs for found in run if found.name == ceiling.name]
        row = {name: getattr(ceiling, name) for name in ("name", "unit", "value", "low", "high")}
        row |= {"samples": len(ceiling.samples), "source": ceiling.source, "datasheet": top.value if top else None}
        row |= {"ratio": ceiling.value / top.value if top else None, "runs": values, "spread": spread(values)}
        rows.append(row)
    return rows


def _told(value: float, unit: str) -> str:
    units = {"bytes_per_s": "B/s", "flops_per_s": "FLOP/s", "ops_per_s": "/s"}
    return seconds_text(value) if unit == "s" else si(value, units[unit])


def _show(device: Device, rows: Sequence[dict[str, Any]], path: Path, repeat: int) -> None:
    headings = ("measured", "95% interval", "datasheet", "of it", *(["spread"] if repeat > 1 else []))
    shown = table(["ceiling"], headings)
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
        shown.add_row(*cells, *([f"{row['spread']:.1%}"] if repeat > 1 else []))
    console = output()
    line(console, f"{device.name}, {device.arch}, {units_text(device.units, device.kind)}")
    console.print(shown, highlight=False)
    line(console, f"ceilings  {path}")
