"""Records of the paper's figures for tests of the report: predicted by the real code, measured as if, and seeded."""

from __future__ import annotations

import functools
import random

import msgspec

from roofline import figures
from roofline.figures_records import FIGURES_VERSION, FigureSeries, PaperFigure, PaperFigures
from roofline.target import of_sku
from tests import journals, studies


def _run(series: FigureSeries, rng: random.Random) -> FigureSeries:
    """A series as if it had been run: near what was predicted, with an interval."""
    points = []
    for point in series.points:
        if point.y is not None:
            y = point.y * rng.uniform(0.9, 1.2)
            points.append(msgspec.structs.replace(point, y=y, bound="", interval=(y * 0.97, y * 1.04)))
    note = series.note or "the smallest presets, at a few lengths"
    return msgspec.structs.replace(series, origin="measured", points=points, note=note)


@functools.cache
def figure(name: str) -> PaperFigure:
    """A figure on the paper's TPU, on an H100 and on the CPU of ``studies``, which ran it too."""
    rng = random.Random(2402_19427)
    targets = [of_sku(figures.PAPER_SKU), of_sku("nvidia-h100-sxm"), studies.target()]
    predicted = figures.predicted(name, targets)
    mine = [series for series in predicted.series if series.device == targets[-1].name]
    measured = [_run(series, rng) for series in mine]
    series = [*predicted.series, *(one for one in measured if one.points)]
    return figures.assembled(name, series, predicted.devices)


def record(*names: str) -> PaperFigures:
    """The figures of these names, all by default."""
    made = [figure(name) for name in names or figures.PLANS]
    command = "griffin roofline study --figure all --measure"
    return PaperFigures(schema_version=FIGURES_VERSION, command=command, figures=made, device=studies.DEVICE)


def hostile(found: PaperFigures) -> PaperFigures:
    """Every text is what a page must never obey."""
    bad = journals.HOSTILE
    made = []
    for one in found.figures:
        series = [
            msgspec.structs.replace(s, label=s.label + bad, model=bad, device=bad, note=bad, assumption=bad)
            for s in one.series
        ]
        panels = [msgspec.structs.replace(panel, title=bad, y=bad) for panel in one.panels]
        claims = [
            msgspec.structs.replace(
                claim,
                statement=bad, where=bad, criterion=bad,
                judgements=[msgspec.structs.replace(j, device=bad, assumption=bad, why=bad) for j in claim.judgements],
            )
            for claim in one.claims
        ]  # fmt: skip
        assumptions = [msgspec.structs.replace(a, name=bad, words=bad) for a in one.assumptions]
        devices = [msgspec.structs.replace(d, name=bad, assumptions=[bad]) for d in one.devices]
        made.append(
            msgspec.structs.replace(
                one, title=bad, x=bad, fixed=bad, series=series, panels=panels, claims=claims, assumptions=assumptions,
                devices=devices,
            )
        )  # fmt: skip
    return msgspec.structs.replace(found, command=bad, figures=made)
