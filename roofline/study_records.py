"""What a roofline study records: one JSON file that tables and the report are made from. Needs no PyTorch.

Times are seconds, sizes bytes, intervals [low, high]. Versioned like the registry: a reader refuses a later version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from griffin_kernels import errors, records
from griffin_kernels.records import DeviceRecord
from roofline.ceilings import Ceiling
from roofline.sweep import GridPoint
from roofline.work import PartKind, Phase

STUDY_VERSION = 1
"""Version of the format."""

FILE_NAME = "roofline.json"


class KernelFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tuned kernel against the ceilings.

    case: key. variant: the winner. floors_s: seconds under each ceiling, by roof name. bound: the one that binds.
    share: floor over measured time; above 1 where a figure of the ceiling was beaten, for example from a cache.
    lost_s: measured time above the floor. tensor_flops, vector_flops, special_ops, bytes: of the contract's cost.
    """

    op: str
    case: str
    variant: str
    measured_s: float
    interval_s: tuple[float, float] | None
    floors_s: dict[str, float]
    bound: str
    share: float
    lost_s: float
    bytes: int
    tensor_flops: int
    vector_flops: int
    special_ops: int


class FusionRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What fusing saves. fused_bytes: every input once, every output once. unfused_bytes: the composition of PyTorch's
    kernels, ``unfused_launches`` of them. fused_s, unfused_s: at this device's ceilings, launches left out."""

    what: str
    case: str
    fused_bytes: int
    unfused_bytes: int
    unfused_launches: int
    fused_s: float
    unfused_s: float


class PartRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a pass, as ``times.PartTime.row`` gives it."""

    kind: PartKind
    layer: int | None
    parameters: int
    tensor_flops: int
    vector_flops: int
    special_ops: int
    bytes: int
    parameter_bytes: int
    cache_bytes: int
    run_bytes: int
    launches: int
    floor_s: float
    bound: str
    predicted_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pass that was run. samples_s: whole passes, no timers inside. parts_s: median seconds of each part in order,
    from passes with timers between parts; the timers cost what their sum exceeds the median by.
    disturbed: other processes took the cores, so that the times are too long."""

    samples_s: list[float]
    median_s: float
    interval_s: tuple[float, float]
    parts_s: list[float]
    disturbed: bool = False

    @property
    def timed_s(self) -> float:
        """Sum over parts."""
        return sum(self.parts_s)


class PassRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One forward pass: sizes, prediction by part, and the measurement if it was run. graphed_s: without launches."""

    model: str
    phase: Phase
    batch: int
    seq: int
    dtype: str
    parameters: int
    floor_s: float
    predicted_s: float
    graphed_s: float
    tokens_per_s: float
    regime: str
    predicted_by_regime_s: dict[str, float]
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    needed_bytes: int
    device_bytes: int
    fits: bool | None
    largest_batch: int | None
    parts: list[PartRow]
    measured: Measured | None = None

    @property
    def error(self) -> float | None:
        """Predicted over measured, minus 1; None if it was not run."""
        return None if self.measured is None else self.predicted_s / self.measured.median_s - 1


class Page(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forward passes on one device. measured: it is the machine at hand, else everything is predicted from a datasheet.

    models: names in the order to show. passes: in detail. grid: prefill and decode over batch and length.
    """

    device: str
    measured: bool
    dtype: str
    models: list[str]
    assumptions: list[str]
    ceilings: list[Ceiling]
    passes: list[PassRecord]
    grid: list[GridPoint]


class Study(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: the device at hand, its ceilings beside the datasheet's, tuned kernels, fusion, forward passes."""

    schema_version: int
    device: DeviceRecord
    ceilings: list[Ceiling]
    datasheet: list[Ceiling]
    kernels: list[KernelFloor]
    fusion: list[FusionRow]
    pages: list[Page]


def read(path: Path) -> Study:
    """Read a study; ReportError says in one sentence what is wrong with the file."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise errors.ReportError(f"{path} cannot be read: {error.strerror}") from None
    return records.decode(
        raw, Study, STUDY_VERSION, str(path), errors.ReportError,
        later=": upgrade it", broken="a roofline study; make it again",
    )  # fmt: skip


def encode(study: Study) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(study), indent=1) + b"\n"


def part_rows(rows: list[dict[str, Any]]) -> list[PartRow]:
    return [PartRow(**row) for row in rows]
