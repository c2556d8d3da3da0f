"""One model on one device over batch sizes and lengths: the regime map. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from griffin_kernels import errors
from griffin_kernels.models.config import GriffinConfig
from roofline.forward import analyse
from roofline.pass_records import GridPoint
from roofline.target import AnalysisTarget
from roofline.work import Phase

if TYPE_CHECKING:
    import pandas

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SEQS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

AXES = ("batch", "seq")


def sweep(
    model: str | GriffinConfig,
    target: AnalysisTarget,
    *,
    phase: Phase,
    dtype: str,
    batches: Iterable[int] = BATCHES,
    seqs: Iterable[int] = SEQS,
) -> list[GridPoint]:
    """Every batch at every length, batches outermost. Raises as ``forward.analyse``."""
    lengths = tuple(seqs)
    return [
        analyse(model, target, phase=phase, batch=batch, seq=seq, dtype=dtype).record.point
        for batch in batches
        for seq in lengths
    ]


def parse_axes(text: str) -> tuple[str, ...]:
    """``batch,seq`` -> ("batch", "seq"); raises ArgumentError for an axis that there is not."""
    axes = tuple(part.strip() for part in text.split(",") if part.strip())
    if not axes or set(axes) - set(AXES):
        raise errors.ArgumentError(f"--sweep is {text!r}, expected batch, seq or batch,seq")
    return axes


def frame(points: Sequence[GridPoint]) -> pandas.DataFrame:
    """One row per point; columns as the fields of GridPoint."""
    import pandas

    return pandas.DataFrame([msgspec.to_builtins(point) for point in points], columns=list(GridPoint.__struct_fields__))
