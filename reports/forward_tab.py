"""The tab *Forward passes*: whole models, predicted and, where they were run, measured."""

from __future__ import annotations

from dataclasses import dataclass

from reports import forward_text as words
from reports.charts import forward_lines, forward_passes, forward_regimes
from reports.forward_model import PageView
from reports.page import Figure, Tab, figure, render
from roofline.pass_records import REGIMES, PassRecord
from roofline.study_records import Study
from roofline.work import LENGTH_IS


@dataclass(frozen=True)
class Pick:
    """One of several charts that a select box shows. id: of its panel."""

    id: str
    label: str
    value: int
    figure: Figure
    chosen: bool


@dataclass(frozen=True)
class PageFigures:
    """The charts of a device. first: the pass whose waterfall is shown at first."""

    kinds: list[Figure | None]
    layers: list[Figure | None]
    first: PassRecord | None
    over_seq: list[Pick]
    over_batch: list[Pick]
    memory: list[Pick]
    regimes: dict[str, Figure]


def forward_tab(study: Study) -> Tab:
    """The tab of a study's forward passes."""
    views = [PageView(page, index) for index, page in enumerate(study.pages)]
    body = render(
        "forward.html.j2",
        pages=[(view, _figures(view)) for view in views],
        words=words,
        regimes=REGIMES,
        length_is=LENGTH_IS,
    )
    return Tab("forward", "Forward passes", body)


def _figures(view: PageView) -> PageFigures:
    accuracy = view.accuracy
    seqs = {seq: forward_lines.speed(view, "batch", seq) for seq in view.seqs}
    batches = {batch: forward_lines.speed(view, "seq", batch) for batch in view.batches}
    memory = {batch: forward_lines.memory(view, batch) for batch in view.batches}
    return PageFigures(
        kinds=[figure(forward_passes.kinds(found)) for found in view.passes],
        layers=[figure(forward_passes.layers(found)) for found in view.passes],
        first=accuracy.worst if accuracy else next(iter(view.passes), None),
        over_seq=_picks(view, "batch", "at-batch", batches, view.common("batch")),
        over_batch=_picks(view, "seq", "at-length", seqs, view.common("seq")),
        memory=_picks(view, "batch", "memory-batch", memory, max(view.common("batch"), view.largest_studied)),
        regimes={
            phase: drawn for phase in view.phases if (drawn := figure(forward_regimes.regimes(view, phase))) is not None
        },
    )


def _picks(view: PageView, axis: str, name: str, specs: dict[int, str | None], chosen: int) -> list[Pick]:
    """One panel for each value of ``axis``."""
    return [
        Pick(f"{view.id}-{name}-{value}", words.number_of(axis, value), value, drawn, value == chosen)
        for value, spec in specs.items()
        if (drawn := figure(spec)) is not None
    ]
