"""Figure 3, predicted: time of a training step over that of MQA at the shortest length. Needs no PyTorch.

Tokens in a batch are the same at every length. A step is forward and backward of the loss of every token, without the
optimiser, which no length changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.figures_clock import ATTENTIONS, ProgramClock, Times, added, bound
from roofline.figures_decode import FAMILIES
from roofline.figures_records import FigurePanel, FigurePoint, FigureSeries
from roofline.figures_scan import NATIVE, SCAN_KINDS, ScanWork, loops
from roofline.forward import Timer
from roofline.target import AnalysisTarget
from roofline.training_work import train_parts

TRAINING_LENGTHS = (2048, 4096, 8192, 16384)
"""Tokens of a sequence in figure 3, and one doubling more."""

TRAINING_SIZES = ("400m", "1b3", "7b")

CPU_LENGTHS = (256, 512, 1024, 2048)
"""Of a CPU, where the paper's would take minutes a step."""

SCALED_SIZE, SCALED_LAYERS, SCALED_WORDS = "100m", 3, 8192
"""What a CPU trains: one layer of each kind of the smallest preset, and a vocabulary beside which they are seen."""

SCALED_NOTE = f"{SCALED_SIZE} presets of {SCALED_LAYERS} layers, vocabulary {SCALED_WORDS}, shorter sequences"


def scaled(family: str) -> GriffinConfig:
    """The model of a family that a CPU trains."""
    config = preset(f"{family}-{SCALED_SIZE}")
    return replace(config, block_types=config.block_types[:SCALED_LAYERS], vocab_size=SCALED_WORDS)


STEP_PANEL = FigurePanel(
    name="8b", title="(b) Training step of Hawk", y="step time over that with the native scan", quantity="ratio"
)

SCAN_STREAMS_BACK = 5 / 3
"""Backward scan over forward scan: dh, a, h read, dx, da written, where x, a are read and h written."""


def training_panel(size: str, title: str) -> FigurePanel:
    """The panel of a size of model."""
    return FigurePanel(name=f"3-{size}", title=title, y="step time over MQA's at the shortest", quantity="ratio")


TRAINING_PANELS = (
    *(training_panel(size, title) for size, title in zip(TRAINING_SIZES, ("400M", "1.3B", "7B"), strict=True)),
    training_panel(SCALED_SIZE, f"100M, {SCALED_LAYERS} layers"),
)


def step_times(
    config: GriffinConfig, target: AnalysisTarget, batch: int, seq: int, dtype: str, attention: str
) -> Times:
    """Seconds by regime of a training step without its optimiser. attention: of a datasheet's device."""
    parts = train_parts(config, batch, seq, dtype, gpu=target.asynchronous)
    kernels = [kernel for part in parts if part.stage != "optimizer" for kernel in part.kernels]
    if target.measured:
        timer = Timer(target, dtype, config.parameters() * 4)
        return added((timer.time(kernel).predicted, 1) for kernel in kernels)
    clock = functools.cache(ProgramClock(target, dtype, attention).times)
    return added((clock(kernel), 1) for kernel in kernels)


def training(target: AnalysisTarget, dtype: str, lengths: Sequence[int] = TRAINING_LENGTHS) -> Iterator[FigureSeries]:
    """Figure 3, a panel for each size; on a CPU one of ``scaled`` models."""
    tokens = max(lengths)
    small = not target.asynchronous
    for size in (SCALED_SIZE,) if small else TRAINING_SIZES:
        for attention in ("",) if target.measured else tuple(assumed.name for assumed in ATTENTIONS):
            base: float | None = None
            for family in ("mqa", "griffin"):
                name = f"{family}-{size}"
                config = scaled(family) if small else preset(name)
                points = []
                for seq in lengths:
                    batch = max(1, tokens // seq)
                    times = step_times(config, target, batch, seq, dtype, attention)
                    seconds = sum(times.values())
                    each = seconds / (batch * seq)  # lengths need not divide the tokens
                    base = each if base is None else base
                    points.append(
                        FigurePoint(x=seq, y=each / base, batch=batch, seq=seq, seconds=seconds, bound=bound(times))
                    )
                yield FigureSeries(
                    label=FAMILIES[family], model=name, panel=f"3-{size}", device=target.name, origin="predicted",
                    assumption=attention, points=points, dtype=dtype, parameters=config.parameters(),
                    note=SCALED_NOTE if small else "",
                )  # fmt: skip


def hawk_steps(target: AnalysisTarget, dtype: str, lengths: Sequence[int]) -> Iterator[FigureSeries]:
    """Panel (b) of figure 8: Hawk's step with another scan, whose extra time is added forward and backward.

    The fused block's own time stays: what a scan of its width and all tokens takes more than the kernel is added.
    """
    small = not target.asynchronous
    name = f"hawk-{SCALED_SIZE if small else '1b3'}"
    config = scaled("hawk") if small else preset(name)
    tokens = max(lengths)
    blocks = config.block_types.count("recurrent")
    for loop in loops(target):
        found: dict[str, list[tuple[int, int, float, str]]] = {kind: [] for kind in SCAN_KINDS}
        for seq in lengths:
            batch = max(1, tokens // seq)
            times = step_times(config, target, batch, seq, dtype, ATTENTIONS[0].name)
            took = {
                kind: sum(ScanWork(kind, seq, dtype, batch, config.lru_width, loop).times(target).values())
                for kind in SCAN_KINDS
            }
            for kind in SCAN_KINDS:
                more = (took[kind] - took["linear"]) * (1 + SCAN_STREAMS_BACK) * blocks
                found[kind].append((batch, seq, sum(times.values()) + more, bound(times)))
        for kind, label in SCAN_KINDS.items():
            points = [
                FigurePoint(x=seq, y=seconds / native, batch=batch, seq=seq, seconds=seconds, bound=binding)
                for (batch, seq, seconds, binding), (*_, native, _) in zip(found[kind], found[NATIVE], strict=True)
            ]
            yield FigureSeries(
                label=label, model=name, panel="8b", device=target.name, origin="predicted", assumption=loop,
                points=points, dtype=dtype, parameters=config.parameters(), note=SCALED_NOTE if small else "",
            )  # fmt: skip
