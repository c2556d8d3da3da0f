"""Packed journals: every point of one op and case with its samples, small enough to ship; made of measurements only."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from griffin_kernels import errors
from griffin_kernels.case import Case
from griffin_kernels.records import DeviceRecord, decode
from roofline import stats
from tuning.search.space import Point, Space, axes_of

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

    @property
    def name(self) -> str:
        """``op case``, for tables."""
        return f"{self.op} {self.case.key}"

    @functools.cached_property
    def space(self) -> Space:
        """The search space; the default is its only seed, so that no strategy is told more than a new machine knows."""
        points = tuple(Point(m.variant, tuple(m.config.items())) for m in self.points)
        seeds = () if self.default is None else (self.default,)
        return Space(points, axes_of(points), seeds, key=f"{self.op}/{self.case.key}")

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
    """Write one file, in one rename, a line for each point. OutputFolderError where the folder cannot be written."""
    whole = msgspec.to_builtins(packed)
    points = [json.dumps(_rounded(point), separators=(",", ":")) for point in whole.pop("points")]
    head = json.dumps(whole, indent=1).removesuffix("\n}")
    text = head + ',\n "points": [\n  ' + ",\n  ".join(points) + "\n ]\n}\n"
    path = folder / file_name(packed.op, packed.case.key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".unfinished")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except OSError as error:
        raise errors.OutputFolderError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
    return path


def _rounded(point: dict[str, Any]) -> dict[str, Any]:
    """A point without fields that say nothing, its times to DIGITS digits."""
    kept = {k: v for k, v in point.items() if not (k == "problem" and v is None)}
    kept["samples_s"] = [float(f"{s:.{DIGITS - 1}e}") for s in point["samples_s"]]
    kept["seconds_spent"] = float(f"{point['seconds_spent']:.3e}")
    return kept


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
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise errors.JournalError(f"there is no packed journal (*.json) in {path}")
            found += map(read, inside)
        else:
            found.append(read(path))
    return found


def shipped() -> list[Packed]:
    """The packed journals that come with the package, in the order of their names."""
    with resources.as_file(resources.files("tuning.replay") / "journals") as folder:
        return read_all([folder])


def same_source(packed: Packed, source_hashes: Iterable[tuple[str, str]]) -> bool:
    """Whether a packed journal was measured with this source, to the last variant."""
    return packed.source_hashes == dict(source_hashes)
