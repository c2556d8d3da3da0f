"""What a roofline study records: one JSON file that tables and the report are made from. Needs no PyTorch.

Times are seconds, sizes bytes, intervals [low, high]. What follows from a record's fields is a property of it.
Versioned like the registry: a reader refuses a later version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from griffin_kernels import errors, records
from griffin_kernels.records import DeviceRecord
from roofline.ceilings import Ceiling
from roofline.training_records import TrainingFacts
from roofline.training_work import Stage
from roofline.units import gib
from roofline.work import PartKind, Phase, new_tokens

STUDY_VERSION = 1
"""Version of the format."""

FILE_NAME = "roofline.json"

Kind = TypeVar("Kind")

REGIMES = {
    "parameters": "reading the weights",
    "cache": "reading and writing keys, values and states",
    "activations": "moving activations through memory",
    "compute": "matrix and vector arithmetic",
    "special": "exp, tanh and their like",
    "launch": "launching kernels",
}
"""What a pass can be bound by -> in words. The regime of a pass is where most of its predicted time goes."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a pass, or ``count`` of them together: sums over its kernels.

    bytes: the least; run_bytes: what the composition of today moves. parameter_bytes, cache_bytes: the shares of
    ``bytes`` that are weights, and states or keys and values. bound: the ceiling that most of the floor is spent under.
    measured_s: None where the pass was not run; a study keeps it in ``Measured``. stage: of a training step, in whose
    backward part of an MLP the block is computed again, where it is.
    """

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
    count: int = 1
    measured_s: float | None = None
    stage: Stage | None = None

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Part:
        """Several as one: of the first's kind, without a layer."""
        floors: Counter[str] = Counter()
        for part in parts:
            floors[part.bound] += part.floor_s  # type: ignore[assignment]
        timed = [part.measured_s for part in parts if part.measured_s is not None]
        told: dict[str, Any] = {"kind": parts[0].kind, "layer": None, "measured_s": sum(timed) if timed else None}
        told["stage"] = parts[0].stage
        told["bound"] = max(floors, key=lambda name: floors[name])
        return cls(**{n: told[n] if n in told else sum(getattr(p, n) for p in parts) for n in cls.__struct_fields__})

    @property
    def flops(self) -> int:
        return self.tensor_flops + self.vector_flops

    @property
    def unexplained_s(self) -> float | None:
        """Measured time that is not predicted, of either sign."""
        return None if self.measured_s is None else self.measured_s - self.predicted_s


@dataclass(frozen=True)
class Memory:
    """What a pass of ``batch`` sequences keeps in device memory, in bytes. device: 0 if unknown."""

    weights: int
    cache: int
    activations: int
    device: int
    batch: int

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if not self.device else self.needed <= self.device

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that fits at this length, 0 if not even one sequence does. None if not known."""
        if not self.device:
            return None
        each = -(-(self.cache + self.activations) // self.batch)
        return max(0, (self.device - self.weights) // max(each, 1))

    def sentence(self) -> str:
        """Whether it fits, in words."""
        needs = f"needs {gib(self.needed)}"
        if self.fits is None:
            return f"{needs}; the device's memory is not known"
        return f"{needs}, the device has {gib(self.device)}" + ("" if self.fits else ": it does not fit")


class Uncertainty(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a prediction was seen to be off. share: nine of ten of the published rows of its kind were nearer than
    this; None where nothing comparable was published. rows: how many there are. why: which, in words."""

    share: float | None
    rows: int
    why: str

    @property
    def text(self) -> str:
        """``within 12% (...)`` or ``none known (...)``."""
        return f"none known ({self.why})" if self.share is None else f"within {self.share:.0%} ({self.why})"


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
    def timers_s(self) -> float:
        """The whole pass less the sum of its parts: what timers between parts cost, with its sign."""
        return self.median_s - sum(self.parts_s)


class PassSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One forward pass in brief.

    predicted_s: as the pass runs, which is ``mode``: ``eager`` (launched from Python), ``graph`` (captured in a CUDA
    graph: a GPU that is not at hand) or ``compiled`` (a TPU). graphed_s: predicted seconds in a CUDA graph; on a CPU
    with nothing but kernels. eager_s: predicted seconds where Python launches; None on a TPU, and in older files.
    regime: a key of REGIMES, where most of the predicted time goes. fits: None if unknown.
    """

    model: str
    phase: Phase
    batch: int
    seq: int
    floor_s: float
    predicted_s: float
    graphed_s: float
    tokens_per_s: float
    regime: str
    weight_bytes: int
    cache_bytes: int
    needed_bytes: int
    fits: bool | None
    mode: str = "eager"
    eager_s: float | None = None

    @property
    def size(self) -> tuple[Phase, int, int]:
        return self.phase, self.batch, self.seq

    @property
    def tokens(self) -> int:
        """Tokens that the pass computes."""
        return self.batch * new_tokens(self.phase, self.seq)

    def memory_on(self, device_bytes: int) -> Memory:
        """Memory of the pass on a device that has so much."""
        activations = self.needed_bytes - self.weight_bytes - self.cache_bytes
        return Memory(self.weight_bytes, self.cache_bytes, activations, device_bytes, self.batch)


class GridPoint(PassSummary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass of a sweep. regime_share: of predicted_s."""

    regime_share: float


class PassRecord(PassSummary, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One forward pass, or a training step: sizes, prediction by part, and the measurement if it was run.

    Of a training step activation_bytes is all that is needed beside the weights, and ``training`` says of what; that is
    unset for a pass, and not written. uncertainty: of a prediction for a SKU, likewise.
    tuned: by op of this package, whether its time was ``measured``, ``predicted``, ``guessed`` or ``composed`` of
    PyTorch's kernels; the name of the published attention that took its place.
    """

    dtype: str
    parameters: int
    predicted_by_regime_s: dict[str, float]
    activation_bytes: int
    device_bytes: int
    largest_batch: int | None
    parts: list[Part]
    measured: Measured | None = None
    tuned: dict[str, str] = {}
    uncertainty: Uncertainty | msgspec.UnsetType = msgspec.UNSET
    training: TrainingFacts | msgspec.UnsetType = msgspec.UNSET

    @property
    def memory(self) -> Memory:
        return self.memory_on(self.device_bytes)

    @property
    def seconds(self) -> float:
        """Measured, or predicted where it was not run."""
        return self.measured.median_s if self.measured else self.predicted_s

    @property
    def rate(self) -> float:
        """Tokens per second, measured or predicted as ``seconds``."""
        return self.tokens / self.seconds

    @property
    def error(self) -> float | None:
        """Predicted over measured, minus 1; None if it was not run."""
        return None if self.measured is None else self.predicted_s / self.measured.median_s - 1

    @property
    def shares(self) -> dict[str, float]:
        """Of the predicted time by regime, the largest first."""
        found = {name: seconds / self.predicted_s for name, seconds in self.predicted_by_regime_s.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def regime_share(self) -> float:
        """Of the predicted time that goes to what binds."""
        return self.shares.get(self.regime, 0.0)

    @property
    def timed(self) -> list[Part]:
        """Every part in order, with what it took."""
        taken = self.measured.parts_s if self.measured else [None] * len(self.parts)
        pairs = zip(self.parts, taken, strict=False)
        return [msgspec.structs.replace(part, measured_s=seconds) for part, seconds in pairs]

    @property
    def kinds(self) -> list[Part]:
        """Parts summed by kind, of a training step by its stages too, in the order of their first."""
        groups: dict[tuple[Stage | None, str], list[Part]] = {}
        for part in self.timed:
            groups.setdefault((part.stage, part.kind), []).append(part)
        return [Part.of(parts) for parts in groups.values()]

    @property
    def whole(self) -> Part:
        """All parts; measured as a whole pass, without the timers between parts."""
        taken = self.measured.median_s if self.measured else None
        return msgspec.structs.replace(Part.of(self.timed), measured_s=taken)

    @property
    def point(self) -> GridPoint:
        """The pass as a sweep keeps it."""
        return GridPoint(**{name: getattr(self, name) for name in GridPoint.__struct_fields__})


class KernelFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tuned kernel against the ceilings.

    case: key. variant: the winner. floors_s: seconds under each ceiling, by roof name. bound: the one that binds.
    share: floor over measured time; above 1 where a figure of the ceiling was beaten, for example from a cache.
    above: why the share is above 1. lost_s: measured time above the floor.
    tensor_flops, vector_flops, special_ops, bytes: of the contract's cost.
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
    above: str | None = None


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


def read_file(path: Path, kind: type[Kind], version: int, broken: str) -> Kind:
    """Read a versioned file; ReportError says in one sentence what is wrong with it. broken: what it should be."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise errors.ReportError(f"{path} cannot be read: {error.strerror}") from None
    told = f"{broken}; make it again"
    return records.decode(raw, kind, version, str(path), errors.ReportError, later=": upgrade it", broken=told)


def read(path: Path) -> Study:
    """Read a study; ReportError says in one sentence what is wrong with the file."""
    return read_file(path, Study, STUDY_VERSION, "a roofline study")


def encode(record: msgspec.Struct) -> bytes:
    """The bytes of a file that holds a record."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
