"""``griffin roofline forward`` and ``griffin roofline study``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from msgspec import structs, to_builtins
from rich.console import Console

from griffin_kernels import errors
from griffin_kernels.datasheet import datasheet, skus
from griffin_kernels.models.presets import PRESETS, preset
from roofline import tables
from roofline.console import StatusLine, output, plain_errors
from roofline.forward import analyse
from roofline.pass_records import GridPoint, PassRecord
from roofline.sweep import BATCHES, SEQS, parse_axes, sweep
from roofline.target import AnalysisTarget, of_sku
from roofline.work import Phase, check

if TYPE_CHECKING:
    from griffin_kernels.device import Device

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short names on the command line."""


def sizes(text: str, name: str) -> tuple[int, ...]:
    """``1,8,64`` -> (1, 8, 64); ArgumentError for what is not a list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise errors.ArgumentError(f"{name} is {text!r}, expected whole numbers such as 1,8,64") from None


def finite(seconds: float) -> None:
    """Raise ArgumentError for times that never end."""
    if not math.isfinite(seconds):
        raise errors.ArgumentError(f"--seconds is {seconds}, expected a finite number")


def target_named(name: str | None) -> tuple[AnalysisTarget, Device | None]:
    """A SKU's target, or this machine's (``None``, ``cpu``, ``cuda``, ``cuda:1``) and its device."""
    if name is not None and name != "cpu" and not name.startswith("cuda"):
        return of_sku(name), None
    from griffin_kernels import device as devices
    from roofline.at_hand import at_hand

    device = devices.detect(name)
    return at_hand(device), device


def forward(
    model: Annotated[str, typer.Option(help="A preset, such as griffin-1b3, hawk-100m or recurrentgemma-2b.")],
    phase: Annotated[str, typer.Option(help="prefill, or decode of one token.")] = "prefill",
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of the prompt; in decode, tokens in the cache already.")] = 2048,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16. bf16 by default, fp32 on this machine's CPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A SKU such as nvidia-h100-sxm; cpu or cuda; this machine by default.")
    ] = None,
    run: Annotated[bool, typer.Option("--measure", help="Run it on this machine as well, where it fits.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for --measure.")] = 4.0,
    axes: Annotated[
        str | None, typer.Option("--sweep", help="batch, seq or batch,seq: a map of what binds where.")
    ] = None,
    batches: Annotated[str | None, typer.Option(help="Batches of a sweep, comma-separated.")] = None,
    seqs: Annotated[str | None, typer.Option(help="Lengths of a sweep, comma-separated.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="One row for each layer, not for each kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row for each part or point.")] = False,
) -> None:
    """What a forward pass takes on a device: FLOPs, bytes, what binds, latency, tokens/s, memory."""
    with plain_errors():
        if as_json and as_csv:
            raise errors.ArgumentError("--json and --csv exclude each other")
        if run and axes:
            raise errors.ArgumentError("--measure runs one pass; it cannot go with --sweep")
        finite(seconds)
        preset(model)  # a wrong name should not wait for the device
        target, here = target_named(device)
        if run and here is None:
            raise errors.DeviceError(f"--measure runs on this machine, not on {device}; leave --device out")
        number = DTYPES.get(dtype or "", dtype) or ("float32" if here and here.kind == "cpu" else "bfloat16")
        check(phase, batch, seq, number)
        if axes:
            names = parse_axes(axes)
            points = sweep(
                model,
                target,
                phase=cast(Phase, phase),
                dtype=number,
                batches=_axis("batch", names, batches, BATCHES, batch),
                seqs=_axis("seq", names, seqs, SEQS, seq),
            )
            _print_sweep(points, as_json, as_csv)
            return
        found = analyse(model, target, phase=cast(Phase, phase), batch=batch, seq=seq, dtype=number)
        record = found.record
        if run and here is not None:
            from roofline import pass_timing

            line = StatusLine(Console(stderr=True))
            line(f"building {model}")
            built = pass_timing.build(found, here)
            line(f"running {model}")
            record = structs.replace(record, measured=pass_timing.measure(built, record, here, seconds))
            line.clear()
        if as_json:
            typer.echo(json.dumps(_plain(record, target), indent=1))
        elif as_csv:
            typer.echo(tables.to_csv(to_builtins(record.timed)), nl=False)
        else:
            tables.show(output(), record, target, layers=layers)


def names() -> None:
    """List the models and devices that ``forward`` knows."""
    with plain_errors():
        tables.show_names(output(), PRESETS, [datasheet(sku) for sku in skus()])


def _plain(record: PassRecord, target: AnalysisTarget) -> dict[str, Any]:
    """Everything as plain values: what ``--json`` prints."""
    whole = record.whole
    summed = ("tensor_flops", "vector_flops", "special_ops", "bytes", "run_bytes", "launches")
    told = to_builtins(record) | {name: getattr(whole, name) for name in summed}
    told |= {"device": target.name, "regime_share": record.regime_share, "assumptions": target.assumptions}
    told["parts"] = to_builtins(record.timed)
    return {name: value for name, value in told.items() if (name, value) != ("measured", None)}


def _axis(name: str, swept: tuple[str, ...], given: str | None, usual: tuple[int, ...], fixed: int) -> tuple[int, ...]:
    """Values of one axis of a sweep."""
    if name not in swept:
        return (fixed,)
    return usual if given is None else sizes(given, "--batches" if name == "batch" else "--seqs")


def _print_sweep(points: list[GridPoint], as_json: bool, as_csv: bool) -> None:
    rows = to_builtins(points)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif as_csv:
        typer.echo(tables.to_csv(rows), nl=False)
    else:
        tables.show_sweep(output(), points)


def study(
    out: Annotated[Path | None, typer.Option(help="The JSON file; in the user's data folder by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:<index>. The first GPU, else the CPU.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for all passes that are run.")] = 60.0,
) -> None:
    """Measure the ceilings, run the preset models, predict them for an H100 too, and record it all for the report."""
    with plain_errors():
        finite(seconds)
        from griffin_kernels import device as devices
        from roofline import store
        from roofline import study as studying

        here = devices.detect(device)
        path = out.expanduser() if out is not None else studying.default_path(here)
        line = StatusLine(Console(stderr=True))
        timing = studying.Timing(seconds=seconds)
        facts, stored = devices.provenance(here), store.default_path(here)
        before = store.earlier(stored, here, facts)
        found = studying.study(here, studying.registered(here), earlier=before, timing=timing, tell=line)
        line.clear()
        store.save(stored, here, found.ceilings, facts)
        studying.write(path, found)
        tables.show_kernels(output(), found)
        tables.show_study(output(), found)
        output().print(f"study     {path}", highlight=False, markup=False, soft_wrap=True)
