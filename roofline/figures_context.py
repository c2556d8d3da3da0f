"""Long context, predicted: one sequence of up to a million tokens. Time of a step and of a prompt, bytes kept.

Not a figure of the paper: its section 6 is about quality. Panels: a decoding step after T tokens, a prompt of T tokens,
and what a sequence of T tokens keeps: recurrent states beside caches of keys and values. Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.models.config import GriffinConfig
from griffin_kernels.models.presets import preset
from roofline.figures_clock import ATTENTIONS, bound, pass_times
from roofline.figures_decode import FAMILIES
from roofline.figures_records import FigurePanel, FigurePoint, FigureSeries
from roofline.target import AnalysisTarget
from roofline.work import Phase

CONTEXT_LENGTHS = (2048, 8192, 32768, 131072, 524288, 1048576)

CONTEXT_PHASES: dict[str, Phase] = {"context-step": "decode", "context-prompt": "prefill"}

CONTEXT_PANELS = (
    FigurePanel(name="context-step", title="One step after T tokens", y="seconds", quantity="s"),
    FigurePanel(name="context-prompt", title="A prompt of T tokens", y="seconds", quantity="s"),
    FigurePanel(name="context-states", title="Recurrent states of a sequence", y="bytes", quantity="bytes"),
    FigurePanel(name="context-keys", title="Keys and values of a sequence", y="bytes", quantity="bytes"),
)


def kept_bytes(config: GriffinConfig, seq: int, size: int) -> tuple[int, int]:
    """(recurrent states with the convolution's inputs, keys and values) of a sequence, bytes. size: of an element."""
    parts = [config.block_cache_bytes(kind, seq, size) for kind in config.block_types]
    keys = sum(part.get("kv", 0) for part in parts)
    return sum(sum(part.values()) for part in parts) - keys, keys


def context(
    target: AnalysisTarget, dtype: str, size: str, lengths: Sequence[int] = CONTEXT_LENGTHS
) -> Iterator[FigureSeries]:
    """Every panel of the three models of a size."""
    for family, label in FAMILIES.items():
        name = f"{family}-{size}"
        config = preset(name)
        for attention in ("",) if target.measured else tuple(assumed.name for assumed in ATTENTIONS):
            told: dict[str, list[FigurePoint]] = {panel.name: [] for panel in CONTEXT_PANELS}
            for seq in lengths:
                for panel, phase in CONTEXT_PHASES.items():
                    times = pass_times(config, target, phase, 1, seq, dtype, attention)
                    seconds = sum(times.values())
                    told[panel].append(
                        FigurePoint(x=seq, y=seconds, batch=1, seq=seq, seconds=seconds, bound=bound(times))
                    )
                for panel, kept in zip(
                    ("context-states", "context-keys"), kept_bytes(config, seq, DTYPE_BYTES[dtype]), strict=True
                ):
                    told[panel].append(
                        FigurePoint(x=seq, y=float(kept) or None, batch=1, seq=seq, seconds=None, bound="")
                    )
            for panel, points in told.items():
                yield FigureSeries(
                    label=label, model=name, panel=panel, device=target.name, origin="predicted",
                    assumption=attention, points=points, dtype=dtype, parameters=config.parameters(),
                )  # fmt: skip
