"""Typed lines of the journal (JSON Lines). Everything later, registry and report, is derived from these.

Times are seconds. A line is one record; ``kind`` says which.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from griffin_kernels.case import Case
from griffin_kernels.records import DeviceRecord, Entry

JOURNAL_VERSION = 4
"""1: the first. 2: candidates that cost their worker its life, conditions, an A/A noise floor, confirmed races.
4: cases that a run left undecided."""


Place = tuple[str, str]
"""Op and key of a case."""


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


class CeilingRecord(msgspec.Struct, frozen=True, kw_only=True, tag="ceiling", tag_field="kind"):
    """A ceiling by its name in ``roofline.ceilings``: value and interval in ``unit`` (``bytes_per_s``).

    Of several of one name the last counts: what a later sample reached raises it. source: what was run; empty in
    journals of earlier versions, which have those of DRAM alone. samples: in ``unit``.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    source: str = ""
    samples: list[float] = []


class OutputError(msgspec.Struct, frozen=True):
    """Error of one output against float64; see ``griffin_kernels.contract.Tolerance``.

    JSON has no infinity: an infinite error (a NaN in the output) is written as null and read back as None.
    """

    output: str
    rel_norm: float | None
    worst: float | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """State of a device at one moment; None where the machine does not tell.

    clock_mhz: SM or core clock. power_w, temperature_c: of the device. throttle: reasons why clocks are held down, in
    NVML's words. load: processes that want a CPU, per core (one-minute average). steal: share of CPU time that the
    hypervisor took since the last reading.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle: list[str] = []
    load: float | None = None
    steal: float | None = None


class Noise(msgspec.Struct, frozen=True, kw_only=True, tag="noise", tag_field="kind"):
    """The A/A test of a run: one kernel raced against itself. floor: the largest |ratio - 1| of the 95% interval.

    floor is what the machine makes of no difference at all. seconds: a call of the kernel that was used (what).
    """

    what: str
    seconds: float
    rounds: int
    low: float
    high: float
    floor: float
    conditions: Conditions = Conditions()


Status = Literal["ok", "slow", "wrong", "failed", "crashed", "timeout", "memory", "rejected", "skipped"]
BAD = ("wrong", "failed", "crashed", "timeout", "memory")
"""Statuses of candidates that ran and should not have ended as they did."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, tag="candidate", tag_field="kind"):
    """One finished candidate: key is ``op/variant/case/config/device``.

    status: ``ok`` (right, timed), ``slow`` (right, but more than the cut-off slower than the best; few samples),
    ``wrong`` (failed the check, never timed), ``failed`` (raised), ``crashed`` (its process died, or gave no answer),
    ``timeout`` (its process was killed when its time was up), ``memory`` (killed, or refused, for want of memory),
    ``rejected`` (cannot run this case here), ``skipped`` (its variant is hopeless here: see problem).
    problem: one sentence unless ok. samples_s: every sample of the first timing. stage: where it ended unless ok:
    ``compile``, ``check`` or ``time``.
    """

    key: str
    op: str
    variant: str
    case: Case
    config: dict[str, Any]
    baseline: bool
    is_default: bool
    status: Status
    problem: str | None = None
    errors: list[OutputError] = []
    samples_s: list[float] = []
    source_hash: str = ""
    seconds_spent: float = 0.0
    stage: str = ""


class Finalist(msgspec.Struct, frozen=True):
    """A candidate in a race. record: of its first timing. incumbent: the published winner. place: in order of trial."""

    record: Candidate
    incumbent: bool = False
    place: int = 0

    @property
    def name(self) -> str:
        values = ",".join(f"{name}={value}" for name, value in self.record.config.items())
        return f"{self.record.variant} [{values}]".removesuffix(" []")


class Race(msgspec.Struct, frozen=True, kw_only=True, tag="race", tag_field="kind"):
    """Interleaved rounds of the finalists of one case: rounds_s[i][j] is finalist j in round i, None where it sat out,
    as a baseline far behind does in most rounds.

    again_s[i] is a second sample of the first finalist in round i. noise_floor: half-width of the interval of the
    ratio of those two, which are the same kernel: no difference below it means anything.
    warm_s[j]: samples of finalist j with warm caches, none of a baseline. before, after: conditions around the rounds.
    confirms: the race was run again, in a fresh worker, because of this surprise; a later race of a case counts.
    tail: probability of an error that its last look had, for all comparisons together.
    ceilings: what the ceiling that binds the case reached beside the race: samples before and after, by its name.
    """

    op: str
    case: Case
    keys: list[str]
    rounds_s: list[list[float | None]]
    again_s: list[float] = []
    noise_floor: float = 0.0
    warm_s: list[list[float]] = []
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    confirms: str = ""
    tail: float = 0.05
    ceilings: dict[str, list[float]] = {}

    def times(self, finalist: int) -> list[float]:
        """Samples of a finalist in the rounds that it ran in."""
        return [s for row in self.rounds_s if (s := row[finalist]) is not None]

    def pairs(self, first: int, second: int) -> tuple[list[float], list[float]]:
        """Samples of two finalists in the rounds that both ran in."""
        both = [(a, b) for row in self.rounds_s if (a := row[first]) is not None and (b := row[second]) is not None]
        return [a for a, _ in both], [b for _, b in both]


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result", tag_field="kind"):
    """The decision for one case: the registry entry and the keys of winner and baseline in this journal."""

    entry: Entry
    winner_key: str
    baseline_key: str | None


class Undecided(msgspec.Struct, frozen=True, kw_only=True, tag="undecided", tag_field="kind"):
    """A case for which a run publishes nothing, though it had the time: no candidate passed, or its races were noisy.

    why: in words. command: what repeats it. noise_floor: of its last race, where that was the reason. A later result of
    the case counts.
    """

    op: str
    case: Case
    why: str
    command: str
    noise_floor: float | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """Last line of a finished run: where the registry went, and how long the work took."""

    date: str
    registry: str
    seconds: float


Record = Run | CeilingRecord | Noise | Candidate | Race | Result | Undecided | End


def place_of(record: Candidate | Race | Undecided | Entry) -> Place:
    """The case that a record or an entry is about."""
    return record.op, record.case.key
