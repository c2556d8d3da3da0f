"""Packed journals: every point of one op and case with its samples, small enough to ship; made of measurements only."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from griffin_kernels import catalog, errors, registry
from griffin_kernels import device as devices
from griffin_kernels.case import Case
from griffin_kernels.device import Device
from griffin_kernels.records import DeviceRecord, decode
from roofline import stats
from tuning.plan import planner
from tuning.plan.planner import Job
from tuning.record import journal
from tuning.record.journal_records import Candidate
from tuning.record.paths import make_folder
from tuning.search.space import Point, Space

PACK_VERSION = 1
DIGITS = 4
"""Significant digits of a packed time: a part in 1,000 at worst, below any noise."""

LEAST_FOR_DRIFT = 5
"""Points that it takes to tell a slow round from a slow sample."""


class MeasuredPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One point. samples_s: as measured, in the order they were taken; seconds_spent: what a tuner pays to try it.

    status, problem: as in ``tuning.record.journal_records.Candidate``; without samples it failed.
    """

    variant: str
    config: dict[str, Any]
    status: str = "ok"
    problem: str | None = None
    samples_s: list[float] = []
    seconds_spent: float = 0.0

    @property
    def timed(self) -> bool:
        """Whether it ran to an end and its outputs were not found wrong."""
        return bool(self.samples_s) and self.status in ("ok", "slow")


class Packed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that competed for one op and case on one device, tried to the last point.

    source: where the measurements come from, in words. source_hashes: variant -> hash of the source that was timed.
    default: the point that is tried first; None where the default could not run. interleaved: sample j of every point
    was taken in round j, so that what slowed down a whole round can be told from what slowed down a point.
    """

    schema_version: int
    op: str
    case: Case
    device: DeviceRecord
    date: str
    source: str
    source_hashes: dict[str, str]
    default: int | None
    interleaved: bool
    points: list[MeasuredPoint]
    kind: Literal["replay"] = "replay"

    @classmethod
    def of(cls, job: Job, points: list[MeasuredPoint], **facts: Any) -> Packed:
        """The packed journal of a job. points: of ``job.competitors``, in that order. facts: the other fields."""
        return cls(
            schema_version=PACK_VERSION,
            op=job.op.name,
            case=job.case,
            source_hashes=source_hashes(job),
            default=next((i for i, p in enumerate(job.competitors) if p is job.default), None),
            points=points,
            **facts,
        )

    @property
    def name(self) -> str:
        """``op case``, for tables."""
        return f"{self.op} {self.case.key}"

    @functools.cached_property
    def space(self) -> Space:
        """The search space; the default is its only seed, so that no strategy is told more than a new machine knows."""
        points = tuple(Point(m.variant, tuple(m.config.items())) for m in self.points)
        seeds = () if self.default is None else (self.default,)
        return Space(points, seeds, key=f"{self.op}/{self.case.key}")

    @functools.cached_property
    def drift(self) -> NDArray[np.float64]:
        """By which factor each round was slower than the median round; ones where rounds cannot be compared.

        The median, over the points that took part in all rounds, of a sample over its point's median.
        """
        rounds = max((len(m.samples_s) for m in self.points), default=0)
        whole = np.array([m.samples_s for m in self.points if m.timed and len(m.samples_s) == rounds])
        if not self.interleaved or len(whole) < LEAST_FOR_DRIFT:
            return np.ones(rounds)
        found: NDArray[np.float64] = np.median(whole / np.median(whole, axis=1, keepdims=True), axis=0)
        return found

    @functools.cached_property
    def samples(self) -> tuple[NDArray[np.float64], ...]:
        """Samples of each point in seconds, what slowed down whole rounds taken out; empty for those that failed."""
        return tuple(
            np.array(m.samples_s if m.timed else []) / self.drift[: len(m.samples_s) * m.timed] for m in self.points
        )

    @functools.cached_property
    def seconds(self) -> tuple[float | None, ...]:
        """Median of each point's ``samples``; None for those that failed."""
        return tuple(stats.median(samples) if len(samples) else None for samples in self.samples)

    @functools.cached_property
    def best(self) -> int:
        """The fastest point."""
        return min((s, i) for i, s in enumerate(self.seconds) if s is not None)[1]

    @property
    def optimum_s(self) -> float:
        """The fastest point's seconds: what trying everything finds."""
        return self.seconds[self.best] or 0.0

    @functools.cached_property
    def uncertainty(self) -> float:
        """Half the width of the 95% interval of the fastest point's median, as a share of it."""
        low, high = stats.bootstrap_interval(self.samples[self.best])
        return (high - low) / 2 / self.optimum_s


def file_name(op: str, case_key: str) -> str:
    """``linear_scan--B1-T2048-D2560-float32.json``."""
    return f"{op}--{case_key}.json"


def write(folder: Path, packed: Packed) -> Path:
    """Write one file at once, a line for each point, times to DIGITS digits. OutputFolderError where that cannot be."""
    whole, points = msgspec.to_builtins(packed), []
    for point in whole.pop("points"):
        times = [float(f"{s:.{DIGITS - 1}e}") for s in point["samples_s"]]
        kept = point | {"samples_s": times, "seconds_spent": float(f"{point['seconds_spent']:.3e}")}
        if kept["problem"] is None:
            del kept["problem"]
        points.append(json.dumps(kept, separators=(",", ":")))
    head = json.dumps(whole, indent=1).removesuffix("\n}")
    text = head + ',\n "points": [\n  ' + ",\n  ".join(points) + "\n ]\n}\n"
    make_folder(folder)
    path = folder / file_name(packed.op, packed.case.key)
    registry.write_atomically(path, text.encode())
    return path


def read(path: Path) -> Packed:
    """One packed journal. JournalError says what is wrong with the file and what would do."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise errors.JournalError(
            f"packed journal {path} cannot be read: {error.strerror}; `griffin tune replay --pack` makes one"
        ) from None
    packed = decode(
        raw,
        Packed,
        PACK_VERSION,
        f"packed journal {path}",
        errors.JournalError,
        later="; update griffin-kernels to replay it",
        broken="a packed journal; `griffin tune replay --pack JOURNAL FOLDER` makes them from a journal",
    )
    count = len(packed.points)
    if not any(point.timed for point in packed.points):
        raise errors.JournalError(f"packed journal {path} has no point that was timed; there is nothing to find in it")
    if packed.default is not None and not 0 <= packed.default < count:
        raise errors.JournalError(f"packed journal {path}: its default is point {packed.default}, it has {count}")
    return packed


def read_all(paths: Sequence[Path]) -> list[Packed]:
    """Packed journals of files and of all .json files in folders, in the order of their names."""
    found: list[Packed] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise errors.JournalError(f"there is no packed journal (*.json) in {path}")
        found += map(read, files)
    return found


def shipped() -> list[Packed]:
    """The packed journals that come with the package, in the order of their names."""
    with resources.as_file(resources.files("tuning.replay") / "journals") as folder:
        return read_all([folder])


def source_hashes(job: Job) -> dict[str, str]:
    """Variant -> hash of its source as it is now, for all that a job's packed journal has."""
    return {p.variant.name: p.variant.source_hash for p in job.competitors}


def pack(path: Path) -> list[Packed]:
    """A journal of ``griffin tune --budget thorough`` packed: every case that was tried to the end.

    That is: every candidate of this package was tried, with its source as it is. JournalError where there is no case.
    """
    records = journal.read(path)
    run = journal.first_run(records)
    if run is None:
        raise errors.JournalError(f"journal {path} does not begin with a run; it cannot be packed")
    tried = {record.key: record for record in records if isinstance(record, Candidate) and record.status != "skipped"}
    device = _device(run.device.validity)
    ops = tuple(name for name in catalog.ops() if any(c.op == name for c in tried.values()))
    jobs = planner.make(planner.Options(ops, budget="thorough"), device) if ops else []
    found = []
    for job in jobs:
        now, done = source_hashes(job), [tried.get(p.key(job.case, device)) for p in job.competitors]
        points = [
            msgspec.convert(c, MeasuredPoint, from_attributes=True)
            for c in done
            if c is not None and c.source_hash == now[c.variant]
        ]
        if len(points) == len(done) and any(point.timed for point in points):
            source = f"journal of run {run.run_id}: {run.command}"
            found.append(Packed.of(job, points, device=run.device, date=run.date, source=source, interleaved=False))
    if not found:
        raise errors.JournalError(
            f"journal {path} has no case of which every candidate was tried with the source as it is now; "
            "`griffin tune --budget thorough --strategy exhaustive` makes such a journal"
        )
    return found


def _device(validity: Mapping[str, Any]) -> Device:
    """The device of a journal: this one, or one with the same facts."""
    for known in (devices.detect(), devices.cpu()):
        if known.validity() == validity:
            return known
    kept = {k: v for k, v in validity.items() if k not in ("memory_gib", "mig")}
    memory = validity.get("memory_gib", 0) * 2**30
    try:
        return Device(**kept, memory_bytes=memory, details=(("mig", validity.get("mig", False)),))
    except TypeError as error:
        raise errors.JournalError(f"the journal's device is not described as this package does: {error}") from None
