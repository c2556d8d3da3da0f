"""``griffin bench model``: a RecurrentGemma as transformers has it against the same one accelerated."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from msgspec import to_builtins
from rich.console import Console

from griffin_kernels import errors
from roofline.console import DeviceOption, StatusLine, line, output, plain_errors, table
from roofline.model_bench_records import FILE_NAME, PARTS, PHASES, BenchPhase, ModelBench, Side, encode
from roofline.units import gib, seconds_text

app = typer.Typer(
    name="bench",
    help="What this package does for a model that you have.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Short names on the command line."""


@app.callback()
def bench() -> None:
    """What this package does for a model that you have."""


@app.command()
def model(
    config: Annotated[
        str, typer.Argument(help="A preset, recurrentgemma-2b or -9b, or a folder with a RecurrentGemma's config.json.")
    ] = "recurrentgemma-2b",
    layers: Annotated[
        int | None,
        typer.Option(help="Layers, from the first; 0: all. 3 of a preset, which are of each kind; all of a folder."),
    ] = None,
    vocab: Annotated[
        int | None,
        typer.Option(help="Rows of the vocabulary; 0: all. 8192 of a preset, so that layers decide; all of a folder."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    seq: Annotated[int, typer.Option(min=2, help="Tokens of a prefill and of a training step.")] = 2048,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    phases: Annotated[
        str, typer.Option(help="Of prefill, generate, train; comma-separated.")
    ] = "prefill,generate,train",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each phase; three rounds at the least.")] = 20.0,
    device: DeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file, or a folder for it. Beside this machine's last run by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Race transformers' RecurrentGemma against the same one after `accelerate`: time, memory, the same tokens."""
    with plain_errors():
        wanted = tuple(part.strip() for part in phases.split(",") if part.strip())
        if unknown := [name for name in wanted if name not in PHASES] or not wanted:
            raise errors.ArgumentError(f"--phases is {phases!r}, expected some of {', '.join(PHASES)}; not {unknown}")
        number = DTYPES.get(dtype, dtype)
        if number not in DTYPES.values():
            raise errors.ArgumentError(f"--dtype is {dtype!r}, expected fp32 or bf16")
        if not 0.0 <= seconds < float("inf"):
            raise errors.ArgumentError(f"--seconds is {seconds}, expected a finite number")
        import torch

        from griffin_kernels import device as devices
        from griffin_kernels.registry import write_atomically
        from roofline import model_bench as benching
        from roofline import store

        here = devices.detect(device)
        path = store.results_folder(here) / FILE_NAME if out is None else out.expanduser()
        path = path / FILE_NAME if path.is_dir() else path
        store.make_parent(path, "the record")
        told = benching.configuration(config, layers, vocab)
        name = Path(config).expanduser().resolve().name if Path(config).expanduser().is_dir() else config
        settings = benching.Settings(
            name, told, getattr(torch, number), batch, seq, tokens, cast(tuple[BenchPhase, ...], wanted)
        )
        status = StatusLine(Console(stderr=True))
        found = benching.bench(settings, here, seconds, shlex.join(["griffin", *sys.argv[1:]]), status)
        status.clear()
        write_atomically(path, encode(found))
        if as_json:
            typer.echo(json.dumps(to_builtins(found) | {"path": str(path)}, indent=1))
        else:
            show(output(), found)
            line(output(), f"record    {path}")


def show(console: Console, found: ModelBench) -> None:
    """The table for people."""
    line(
        console,
        f"{found.model}: {found.layers} layers of width {found.width}, vocabulary {found.vocab_size}, "
        f"{found.parameters / 1e6:.0f} M parameters, {found.dtype}, batch {found.batch}; "
        f"transformers {found.transformers}",
    )
    rows = table(["phase"], ["transformers", "accelerated", "speedup", "95% interval", "memory", "accelerated's"])
    for phase in found.phases:
        peaks = [_size(side) for side in (phase.original, phase.accelerated)]
        rows.add_row(
            phase.phase, seconds_text(phase.original.median_s), seconds_text(phase.accelerated.median_s),
            f"{phase.ratio:.2f}x", f"{phase.interval[0]:.2f} to {phase.interval[1]:.2f}", *peaks,
        )  # fmt: skip
        for part, words in PARTS.items():
            ratio = phase.part_ratio(part)
            if ratio is not None:
                times = [side.parts_s[part] for side in (phase.original, phase.accelerated)]
                rows.add_row(f"  {words}", *map(seconds_text, times), f"{ratio:.2f}x")
    console.print(rows, highlight=False)
    if found.tokens_told is not None:
        line(console, found.tokens_told)
    if any(side.disturbed for phase in found.phases for side in (phase.original, phase.accelerated)):
        line(console, "other processes took the cores meanwhile; run again when they are done", "yellow")


def _size(side: Side) -> str:
    return "not told" if side.peak_bytes is None else gib(side.peak_bytes)
