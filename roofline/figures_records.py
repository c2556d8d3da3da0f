"""What ``griffin roofline study --figure`` finds and records: figures as data, in one JSON file. Needs no PyTorch.

Times are seconds, sizes bytes. Versioned like the registry: a reader refuses a later version. The figures are those of
De et al., Griffin, arXiv 2402.19427: their axes and the statements of their text; its curves are images, and no value
of them is held here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from griffin_kernels.records import DeviceRecord
from roofline.study_records import encode as encode
from roofline.study_records import read_file

FIGURES_VERSION = 1
"""Version of the format."""

FILE_NAME = "paper_figures.json"

Origin = Literal["predicted", "measured"]
Outcome = Literal["pass", "fail", "cannot tell"]
Quantity = Literal["tokens/s", "s", "ratio", "bytes"]


class FigurePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point. x: on the figure's axis. y: in its panel's quantity; None where nothing fits in the device's memory.

    batch, seq: sequences, and tokens of each when the point ends. seconds: what y was derived from. bound: where most
    of a predicted time goes, a key of ``REGIMES``; empty where it was measured. interval: of y, 95 %, if measured.
    """

    x: float
    y: float | None
    batch: int
    seq: int
    seconds: float | None
    bound: str
    interval: tuple[float, float] | None = None


class FigureSeries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of a panel. label: what the paper calls it. model: the preset, or the kernel.

    assumption: the name of one of the figure's; empty where the time rests on none. note: how what was run differs
    from what the paper ran. parameters: of the model; 0 for a kernel. dtype: of weights and data.
    """

    label: str
    model: str
    panel: str
    device: str
    origin: Origin
    assumption: str
    points: list[FigurePoint]
    dtype: str = ""
    parameters: int = 0
    note: str = ""


class FigurePanel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pair of axes. y: what is drawn, in words. quantity: its unit."""

    name: str
    title: str
    y: str
    quantity: Quantity


class FigureAssumption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the paper does not say and a prediction needs: a name, and the sentence behind it."""

    name: str
    words: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statement held against the series of one device. why: the numbers that decided."""

    device: str
    origin: Origin
    assumption: str
    outcome: Outcome
    why: str


class FigureClaim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statement of the paper's text in our words. where: the section. criterion: what counts as agreement here."""

    statement: str
    where: str
    criterion: str
    judgements: list[Judgement]


class FigureDevice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device of a figure, and what its predictions rest on."""

    name: str
    assumptions: list[str]


class PaperFigure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure. name: ``1b``, ``3``, ``4``, ``8``, ``context``. x: what the axis counts. fixed: what stays."""

    name: str
    title: str
    x: str
    fixed: str
    panels: list[FigurePanel]
    series: list[FigureSeries]
    claims: list[FigureClaim]
    assumptions: list[FigureAssumption]
    devices: list[FigureDevice]

    def of_panel(self, name: str) -> list[FigureSeries]:
        """The series of a panel, in order."""
        return [series for series in self.series if series.panel == name]


class PaperFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file. device: the machine that measured, None where everything is predicted. command: what made it."""

    schema_version: int
    command: str
    figures: list[PaperFigure]
    device: DeviceRecord | None = None


def read(path: Path) -> PaperFigures:
    """Read a file; ReportError says in one sentence what is wrong with it."""
    return read_file(path, PaperFigures, FIGURES_VERSION, "a record of `griffin roofline study --figure`")
