"""Typed lines of the journal (JSON Lines). Everything later, registry and report, is derived from these.

Times are seconds. A line is one record; ``kind`` says which.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from griffin_kernels.records import CaseRecord, DeviceRecord, Entry

JOURNAL_VERSION = 1


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run", tag_field="kind"):
    """First line of a journal, and again at every resume. planned: keys of all candidates, in order of work."""

    journal_version: int
    run_id: str
    date: str
    device: DeviceRecord
    command: str
    options: dict[str, Any]
    planned: int
    resumed: bool = False


class Ceiling(msgspec.Struct, frozen=True, kw_only=True, tag="ceiling", tag_field="kind"):
    """A measured ceiling by its name in ``roofline.ceilings``: value and interval in ``unit`` (``bytes_per_s``)."""

    name: str
    value: float
    low: float
    high: float
    unit: str


class OutputError(msgspec.Struct, frozen=True):
    """Error of one output against float64; see ``griffin_kernels.contract.Tolerance``.

    JSON has no infinity: an infinite error (a NaN in the output) is written as null and read back as None.
    """

    output: str
    rel_norm: float | None
    worst: float | None


class Candidate(msgspec.Struct, frozen=True, kw_only=True, tag="candidate", tag_field="kind"):
    """One finished candidate: key is ``op/variant/case/config/device``.

    status: ``ok`` (right, timed), ``slow`` (right, but more than the cut-off slower than the best; few samples),
    ``wrong`` (failed the gate, never timed), ``failed`` (raised), ``rejected`` (cannot run this case here),
    ``skipped`` (its variant is hopeless here: see problem).
    problem: one sentence unless ok. samples_s: every sample of the first timing.
    """

    key: str
    op: str
    variant: str
    case: CaseRecord
    config: dict[str, Any]
    baseline: bool
    is_default: bool
    status: Literal["ok", "slow", "wrong", "failed", "rejected", "skipped"]
    problem: str | None = None
    errors: list[OutputError] = []
    samples_s: list[float] = []
    source_hash: str = ""
    seconds_spent: float = 0.0


class Race(msgspec.Struct, frozen=True, kw_only=True, tag="race", tag_field="kind"):
    """Interleaved rounds of the finalists of one case: rounds_s[i][j] is finalist j in round i.

    again_s[i] is a second sample of the first finalist in round i. noise_floor: half-width of the interval of the
    ratio of those two, which are the same kernel: no difference below it means anything.
    """

    op: str
    case: CaseRecord
    keys: list[str]
    rounds_s: list[list[float]]
    again_s: list[float] = []
    noise_floor: float = 0.0


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result", tag_field="kind"):
    """The decision for one case: the registry entry and the keys of winner and baseline in this journal."""

    entry: Entry
    winner_key: str
    baseline_key: str | None


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """Last line of a finished run: where the registry went, and how long the work took."""

    date: str
    registry: str
    seconds: float


Record = Run | Ceiling | Candidate | Race | Result | End
