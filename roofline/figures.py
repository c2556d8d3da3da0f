"""Figures 1b, 3, 4 and 8 of the Griffin paper on any device, and one of long contexts. Needs no PyTorch.

    >>> from roofline.figures import predicted
    >>> from roofline.target import of_sku
    >>> figure = predicted("3", [of_sku("google-tpu-v3")])
    >>> [(claim.statement, [j.outcome for j in claim.judgements]) for claim in figure.claims]

The axes are the paper's (De et al., arXiv 2402.19427). Where it does not say what a curve rests on, there are two named
assumptions, the ends of a band, and never one that was chosen silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from griffin_kernels import errors
from roofline import figures_context as context
from roofline import figures_decode as decode
from roofline import figures_scan as scan
from roofline import figures_training as training
from roofline.figures_claims import claims
from roofline.figures_clock import ATTENTIONS, PROGRAM
from roofline.figures_records import FigureAssumption, FigureDevice, FigurePanel, FigureSeries, PaperFigure
from roofline.target import AnalysisTarget
from roofline.work import LARGEST

PAPER_SKU = "google-tpu-v3"
"""What the paper ran on."""

Builder = Callable[[AnalysisTarget, str, Sequence[int]], Iterator[FigureSeries]]


@dataclass(frozen=True)
class FigurePlan:
    """How a figure is made. lengths, cpu_lengths: its x axis on accelerators and on a CPU. build: the predicted series
    of a target, dtype, lengths. notes: what holds on every device."""

    title: str
    x: str
    fixed: str
    lengths: tuple[int, ...]
    cpu_lengths: tuple[int, ...]
    panels: tuple[FigurePanel, ...]
    assumptions: tuple[FigureAssumption, ...]
    build: Builder
    notes: tuple[str, ...] = ()


def usual_size(target: AnalysisTarget) -> str:
    """The paper's 1B models; on a CPU the smallest presets."""
    return "1b3" if target.asynchronous else "100m"


def usual_dtype(target: AnalysisTarget) -> str:
    """What the paper computes in, bfloat16, where the device has products in it; float32 on a CPU."""
    known = target.ceilings.tensor_flops_per_s
    wanted = ("bfloat16", "float16") if target.asynchronous else ()
    return next((dtype for dtype in wanted if dtype in known), "float32")


def _scans(target: AnalysisTarget, dtype: str, lengths: Sequence[int]) -> Iterator[FigureSeries]:
    half = dtype if target.asynchronous else "bfloat16"
    yield from scan.scans(target, tuple(dict.fromkeys((half, "float32"))), lengths)
    yield from training.hawk_steps(target, dtype, lengths)


PLANS: dict[str, FigurePlan] = {
    "1b": FigurePlan(
        title="Throughput of sampling",
        x="tokens sampled", fixed="1B models, empty prompt, the best batch that fits in memory",
        lengths=decode.THROUGHPUT_LENGTHS, cpu_lengths=decode.THROUGHPUT_LENGTHS,
        panels=(decode.THROUGHPUT_PANEL,), assumptions=decode.CACHES, notes=decode.SAMPLING_NOTES,
        build=lambda target, dtype, lengths: decode.throughput(target, dtype, usual_size(target), lengths),
    ),
    "3": FigurePlan(
        title="Time of a training step",
        x="tokens of a sequence", fixed="tokens of a batch constant, window 1024",
        lengths=training.TRAINING_LENGTHS, cpu_lengths=training.CPU_LENGTHS,
        panels=training.TRAINING_PANELS, assumptions=ATTENTIONS, build=training.training,
        notes=("a step is forward and backward of the loss of every token, without the optimiser",),
    ),
    "4": FigurePlan(
        title="Latency of sampling",
        x="tokens sampled", fixed=f"1B models, batch {decode.LATENCY_BATCH}",
        lengths=decode.LATENCY_LENGTHS, cpu_lengths=decode.LATENCY_LENGTHS,
        panels=decode.LATENCY_PANELS, assumptions=decode.CACHES, notes=decode.SAMPLING_NOTES,
        build=lambda target, dtype, lengths: decode.latency(target, dtype, usual_size(target), lengths),
    ),
    "8": FigurePlan(
        title="Implementations of the scan",
        x="tokens of a sequence",
        fixed=f"batch {scan.SCAN_BATCH}, width {scan.SCAN_WIDTH}; (b) tokens of a batch constant",
        lengths=scan.SCAN_LENGTHS, cpu_lengths=training.CPU_LENGTHS,
        panels=(*map(scan.scan_panel, scan.PANEL_OF), training.STEP_PANEL), assumptions=scan.LOOPS, build=_scans,
        notes=(scan.TREE_NOTE,),
    ),
    "context": FigurePlan(
        title="Long contexts",
        x="tokens of a sequence", fixed="1B models, batch 1",
        lengths=context.CONTEXT_LENGTHS, cpu_lengths=context.CONTEXT_LENGTHS,
        panels=context.CONTEXT_PANELS, assumptions=ATTENTIONS,
        build=lambda target, dtype, lengths: context.context(target, dtype, usual_size(target), lengths),
        notes=("not a figure of the paper",),
    ),
}  # fmt: skip
"""Figures by name."""


def names_of(text: str) -> tuple[str, ...]:
    """``1b,3`` or ``all`` -> names of figures; ArgumentError for one that is not known."""
    wanted = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if wanted == ("all",):
        return tuple(PLANS)
    if not wanted or set(wanted) - set(PLANS):
        raise errors.ArgumentError(f"--figure is {text!r}, expected some of {', '.join(PLANS)}, or all")
    return wanted


def plan_of(name: str) -> FigurePlan:
    """The plan of a figure; ArgumentError for a name that is not known."""
    return PLANS[names_of(name)[0]]


def predicted(
    name: str, targets: Sequence[AnalysisTarget], *, lengths: Sequence[int] | None = None, dtype: str | None = None
) -> PaperFigure:
    """A figure, predicted for each target, and its statements judged.

    name: a key of PLANS. lengths: the x axis in place of the paper's. dtype: as ``usual_dtype`` if None.
    Raises ArgumentError for an unknown name or a length below 1, DtypeError for one that a target lacks, DeviceError
    for figure 1b where a target's memory is not known.
    """
    plan = plan_of(name)
    series = [one for target in targets for one in series_of(plan, target, lengths, dtype)]
    return assembled(name, series, [device_of(plan, target) for target in targets])


def series_of(
    plan: FigurePlan, target: AnalysisTarget, lengths: Sequence[int] | None = None, dtype: str | None = None
) -> list[FigureSeries]:
    """The predicted series of a plan on a target."""
    usual = plan.lengths if target.asynchronous else plan.cpu_lengths
    taken = tuple(lengths or usual)
    for length in taken:
        if not 1 <= length <= LARGEST:
            raise errors.ArgumentError(f"a length of the axis is {length}, expected 1 to {LARGEST} (2^40)")
    number = dtype or usual_dtype(target)
    if number not in target.ceilings.tensor_flops_per_s:
        had = ", ".join(sorted(target.ceilings.tensor_flops_per_s)) or "none"
        raise errors.DtypeError(f"{target.name} has no known matrix peak in {number}; it has {had}")
    return list(plan.build(target, number, sorted(taken)))


def device_of(plan: FigurePlan, target: AnalysisTarget) -> FigureDevice:
    """A target, and what its predictions rest on."""
    how = () if target.measured else (PROGRAM,)
    return FigureDevice(name=target.name, assumptions=[*target.assumptions, *how, *plan.notes])


def assembled(name: str, series: Sequence[FigureSeries], devices: Sequence[FigureDevice]) -> PaperFigure:
    """A figure of series, predicted and measured, with the panels and assumptions that they use."""
    plan = plan_of(name)
    panels, assumed = ({getattr(one, kind) for one in series} for kind in ("panel", "assumption"))
    return PaperFigure(
        name=name, title=plan.title, x=plan.x, fixed=plan.fixed, series=list(series), claims=claims(name, series),
        panels=[panel for panel in plan.panels if panel.name in panels],
        assumptions=[one for one in plan.assumptions if one.name in assumed], devices=list(devices),
    )  # fmt: skip


def agreeing(figure: PaperFigure) -> list[tuple[str, str, str, int]]:
    """(device, origin, assumption, statements that hold there) in order, for a figure with statements."""
    kinds = {(j.device, j.origin, j.assumption): 0 for claim in figure.claims for j in claim.judgements}
    for claim in figure.claims:
        for j in claim.judgements:
            kinds[j.device, j.origin, j.assumption] += j.outcome == "pass"
    return [(*kind, count) for kind, count in kinds.items()]
