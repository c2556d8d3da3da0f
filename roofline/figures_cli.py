"""``griffin roofline study --figure``: the paper's figures as tables, JSON, and a record for the report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from msgspec import structs, to_builtins
from rich.console import Console

from griffin_kernels import errors
from roofline.console import StatusLine, line, output
from roofline.figures import PAPER_SKU, PLANS, assembled, device_of, names_of, series_of
from roofline.figures_records import FIGURES_VERSION, FILE_NAME, FigureDevice, FigureSeries, PaperFigures, encode, read
from roofline.figures_tables import show_figure
from roofline.target import AnalysisTarget, at_hand, of_sku

if TYPE_CHECKING:
    from griffin_kernels.device import Device


def run_figures(
    wanted: str, device: str | None, lengths: Sequence[int] | None, dtype: str | None, seconds: float | None,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make figures, print them, and record them where ``out`` says, or in the results folder if any was measured.

    wanted: names, comma-separated, or ``all``. device: SKUs, or cpu or cuda; the paper's TPU if None. seconds: time to
    measure each figure on this machine for; None measures nothing.
    """
    names = names_of(wanted)
    here, targets = _targets(device, measure=seconds is not None)
    status = StatusLine(Console(stderr=True))
    found = []
    for name in names:
        plan, series, devices = PLANS[name], list[FigureSeries](), list[FigureDevice]()
        for target in targets:
            series += series_of(plan, target, lengths, dtype)
            devices.append(device_of(plan, target))
        if seconds is not None:
            from roofline import figures_measure as measuring

            assert here is not None
            series += measuring.measured(name, here, lengths, seconds, status)
        found.append(assembled(name, series, devices))
    status.clear()
    record = PaperFigures(schema_version=FIGURES_VERSION, command=_command(), figures=found)
    if as_json:
        typer.echo(json.dumps(to_builtins(record.figures), indent=1))
    else:
        for figure in found:
            show_figure(output(), figure)
    if out is not None or seconds is not None:
        path = save(record, here if seconds is not None else None, out)
        if not as_json:
            line(output(), f"record    {path}")


def _targets(device: str | None, measure: bool) -> tuple[Device | None, list[AnalysisTarget]]:
    """This machine's device, if it is among them or measures, and what is predicted for."""
    named = [part.strip() for part in (device or PAPER_SKU).split(",") if part.strip()]
    local = [name for name in named if name == "cpu" or name.startswith("cuda")]
    if not named or len(local) > 1:
        raise errors.ArgumentError(f"--device is {device!r}, expected SKUs, and cpu or cuda once: nvidia-h100-sxm,cpu")
    if measure and not local:
        local = [""]
        named.append("")
    here = None
    if local:
        from griffin_kernels import device as devices

        here = devices.detect(local[0] or None)
    targets = [at_hand(here) if here is not None and name in local else of_sku(name) for name in named]
    return here, targets


def _command() -> str:
    return shlex.join(["griffin", *sys.argv[1:]])


def save(record: PaperFigures, here: Device | None, out: Path | None) -> Path:
    """Write figures; those of the same name in a file that is there are replaced, others stay. Gives the path.

    here: the machine that measured. out: the file, or a folder for it; the results folder of ``here`` if None.
    Raises OutputFolderError, and ReportError where another kind of file is in the way.
    """
    from griffin_kernels import device as devices  # and with it torch
    from griffin_kernels.records import DeviceRecord
    from griffin_kernels.registry import write_atomically
    from roofline import store

    path = store.results_folder(here or devices.detect(None)) / FILE_NAME if out is None else out.expanduser()
    path = path / FILE_NAME if path.is_dir() else path
    store.make_parent(path, "the figures")
    if here is not None:
        record = structs.replace(record, device=DeviceRecord(here.validity(), devices.provenance(here)))
    if path.exists():
        earlier = read(path)
        made = {figure.name for figure in record.figures}
        kept = [figure for figure in earlier.figures if figure.name not in made]
        figures = sorted([*record.figures, *kept], key=lambda figure: list(PLANS).index(figure.name))
        record = structs.replace(record, figures=figures, device=record.device or (earlier.device if kept else None))
    write_atomically(path, encode(record))
    return path
