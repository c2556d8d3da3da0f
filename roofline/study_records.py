"""What a roofline study records: one JSON file that tables and the report are made from. Needs no PyTorch.

Times are seconds, sizes bytes, intervals [low, high]. Versioned like the registry: a reader refuses a later version.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from griffin_kernels import errors, records
from griffin_kernels.records import DeviceRecord
from roofline.ceilings import Ceiling
from roofline.pass_records import GridPoint, PassRecord

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
