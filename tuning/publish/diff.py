"""Compares two registries, entry by entry, and makes one of several of a device.

Times of two runs were not measured side by side: what the machine did differently in between is in them. How much that
was, kernels tell that did not change: same source, configuration, device and libraries. No difference counts that lies
within what 19 in 20 of them differ by, within 3%, or within the noise floor of either race. The interval of the ratio
takes the two medians as independent. Distances are logarithms of ratios, so that whichever registry comes first, one
verdict is the other's opposite: a noise floor of f may mean a factor of 1 - f as well as one of 1 + f, so it counts as
-log(1 - f), and one of 100% or more may mean anything.

    FASTER, SLOWER   the interval leaves 1 out, and the ratio is further from 1 than all of these
    SAME             the whole interval is as near to 1 as 3% or the noise floors; or the kernel did not change, and
                     the ratio is within what the machine makes, and its interval no wider; never where a noise floor
                     is above 20%
    UNSURE           neither: measure again for longer, or on a quieter machine
"""

from __future__ import annotations

import datetime
import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from griffin_kernels import catalog, errors, validity
from griffin_kernels.records import SCHEMA_VERSION, Entry, RegistryFile, Tie
from roofline.units import units_text
from tuning.plan.budget import UNQUIET
from tuning.record.journal_records import Place, place_of

BETWEEN_RUNS = 0.03
"""What one kernel differs by between two runs on a machine where nothing has changed: 1 to 3% (Helion, pull 3523)."""

UNCHANGED = 5
"""So many unchanged kernels at least tell what the machine did between two runs."""

Verdict = Literal["SAME", "FASTER", "SLOWER", "UNSURE"]
Winner = Literal["same", "tie", "other"]


@dataclass(frozen=True)
class DiffRow:
    """One op and case that both have. ratio: time in b over time in a, with its 95% interval.

    winner: ``same`` variant and configuration, ``tie`` where either race could not tell the other's winner from its
    own, else ``other``.
    """

    a: Entry
    b: Entry
    verdict: Verdict
    winner: Winner
    why: str
    ratio: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Diff:
    """rows: what both have. only_a, only_b: entries that one of them lacks. notes: what to know before reading.

    machine: share by which kernels that did not change differ, 19 in 20 of them; None where too few tell.
    """

    rows: tuple[DiffRow, ...]
    only_a: tuple[Entry, ...]
    only_b: tuple[Entry, ...]
    notes: tuple[str, ...]
    machine: float | None = None

    @property
    def agreeing(self) -> int:
        """Common entries whose winner is the same or tied."""
        return sum(row.winner != "other" for row in self.rows)

    @property
    def agreement(self) -> float | None:
        """Share of ``agreeing`` in the common entries; None where nothing is common."""
        return self.agreeing / len(self.rows) if self.rows else None

    def count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for row in self.rows)


def diff(a: RegistryFile, b: RegistryFile) -> Diff:
    """``b`` held against ``a``."""
    left, right = ({place_of(entry): entry for entry in file.entries} for file in (a, b))
    both = [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]
    same = [_unchanged(one, other, a, b) for one, other in both]
    notes = []
    if a.device.validity != b.device.validity:
        notes.append("these are different devices: ratios compare the machines, not the kernels")
    sizes = [
        abs(log_interval(one, other)[0])
        for (one, other), unchanged in zip(both, same, strict=True)
        if unchanged and one != other and _timed(one) and _timed(other)
    ]
    far, machine = 0.0, None
    if len(sizes) >= UNCHANGED:
        far = float(np.quantile(sizes, 19 / 20))
        machine = math.expm1(min(far, 700.0))
        notes.append(
            f"{len(sizes)} kernels did not change, nor did what they depend on; 19 in 20 of them differ by up to "
            f"{machine:.0%}, which is the machine's doing, and smaller differences do not count"
        )
    return Diff(
        rows=tuple(_row(*pair, far, unchanged) for pair, unchanged in zip(both, same, strict=True)),
        only_a=tuple(left[key] for key in sorted(left.keys() - right.keys())),
        only_b=tuple(right[key] for key in sorted(right.keys() - left.keys())),
        notes=tuple(notes),
        machine=machine,
    )


def _unchanged(one: Entry, other: Entry, a: RegistryFile, b: RegistryFile) -> bool:
    """Whether two entries run the same machine code on the same machine."""
    if a.device.validity != b.device.validity or not same_kernel(one, other) or one.source_hash != other.source_hash:
        return False
    before, now = a.device.provenance | one.provenance, b.device.provenance | other.provenance
    return not validity.differing(one.variant, before, now)


def same_kernel(a: Entry, b: Entry | Tie) -> bool:
    """True if two entries, or an entry and what it is tied with, run the same variant with the same configuration."""
    return a.variant == b.variant and a.config == b.config


def winner(a: Entry, b: Entry) -> Winner:
    """How the winners of two entries agree."""
    if same_kernel(a, b):
        return "same"
    return "tie" if any(same_kernel(e, tie) for e, ties in ((b, a.ties), (a, b.ties)) for tie in ties) else "other"


def _timed(entry: Entry) -> bool:
    """Whether an entry has a time with an interval."""
    return (
        entry.status == "measured"
        and entry.median_s is not None
        and entry.interval_s is not None
        and min(entry.median_s, *entry.interval_s) > 0
    )


def _row(a: Entry, b: Entry, machine: float, unchanged: bool) -> DiffRow:
    """machine: what the machine makes, as a log."""
    agreed = winner(a, b)
    if a == b and a.median_s is not None:
        return DiffRow(a, b, "SAME", agreed, "one measurement", 1.0, (1.0, 1.0))
    for name, entry in (("first", a), ("second", b)):
        if entry.status == "predicted":
            return DiffRow(a, b, "UNSURE", agreed, f"the {name} is predicted, not measured")
        if not _timed(entry):
            return DiffRow(a, b, "UNSURE", agreed, f"the {name} has no time with an interval")
    own = max(BETWEEN_RUNS, a.noise_floor or 0.0, b.noise_floor or 0.0)
    center, low, high = logs = log_interval(a, b)
    near = -math.log1p(-own) if own < 1 else math.inf
    beyond = max(near, machine)
    as_ever = unchanged and abs(center) <= machine and max(center - low, high - center) <= machine
    verdict: Verdict = "UNSURE"
    if own <= UNQUIET and (max(-low, high) <= near or as_ever):
        verdict = "SAME"
    elif high < 0 and center < -beyond:
        verdict = "FASTER"
    elif low > 0 and center > beyond:
        verdict = "SLOWER"
    noise = max(own, math.expm1(min(machine, 700.0)))
    why = f"noise {noise:.1%}" + ("" if own <= UNQUIET else ", too much to call anything the same")
    # times out of a file may be as far apart as floats go
    ratio, least, most = (math.exp(max(-700.0, min(log, 700.0))) for log in logs)
    return DiffRow(a, b, verdict, agreed, why, ratio, (least, most))


def log_interval(a: Entry, b: Entry) -> tuple[float, float, float]:
    """Log of the time in b over the time in a, and its 95% interval from the two medians', taken as independent."""
    assert a.median_s and b.median_s and a.interval_s and b.interval_s
    at, low, high = map(math.log, (a.median_s, *a.interval_s))
    other, least, most = map(math.log, (b.median_s, *b.interval_s))
    # distances of the ends from the medians add like standard deviations; sorted, for the last bit either way round
    below = math.hypot(*sorted((max(0.0, other - least), max(0.0, high - at))))
    above = math.hypot(*sorted((max(0.0, most - other), max(0.0, at - low))))
    return other - at, other - at - below, other - at + above


class Conflict(NamedTuple):
    """One op and case for which registries name different kernels, with the files they are from."""

    kept: tuple[Path, Entry]
    dropped: tuple[Path, Entry]


def merge(files: Sequence[tuple[Path, RegistryFile]]) -> tuple[RegistryFile, list[Conflict]]:
    """(the entries of all files, what they disagree on): of each op and case the newest measurement.

    There is no "keep the faster": the two times were measured in different runs, and the smaller one says more about
    the quieter machine than about the kernel. Who wants to know which kernel is faster races them again.
    Measured goes before predicted, then newer before older, then later before earlier named.
    Raises RegistryError where the files are not of one device.
    """
    first_path, first = files[0]
    for path, file in files[1:]:
        if file.device.validity != first.device.validity:
            raise errors.RegistryError(
                f"{path} is of {_device(file)}, {first_path} of {_device(first)}; "
                "only registries of exactly the same device can be merged"
            )
    newest = max((file for _, file in files), key=lambda file: _time(str(file.device.provenance.get("date", ""))))
    found: dict[Place, tuple[Path, Entry]] = {}
    conflicts: list[Conflict] = []
    for path, file in files:
        for raw in file.entries:
            entry = validity.under(raw, file.device.provenance, newest.device.provenance)
            key = place_of(entry)
            if (earlier := found.get(key)) is None:
                found[key] = (path, entry)
                continue
            dropped, kept = sorted(
                (earlier, (path, entry)), key=lambda f: (f[1].status == "measured", _time(f[1].date))
            )
            found[key] = kept
            if not same_kernel(kept[1], dropped[1]):
                conflicts.append(Conflict(kept, dropped))
    entries = [entry for _, entry in found.values()]
    return RegistryFile(schema_version=SCHEMA_VERSION, device=newest.device, entries=entries), conflicts


def _device(file: RegistryFile) -> str:
    facts = file.device.validity
    return f"{validity.named(facts)}, {units_text(validity.quoted(facts.get('units', '?')), facts.get('kind'))}"


def _time(date: str) -> float:
    """Seconds since 1970 of an ISO date, UTC unless it says otherwise; a date that is none is older than any."""
    try:
        found = datetime.datetime.fromisoformat(date)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return float("-inf")


def rerace(conflicts: Sequence[Conflict]) -> tuple[list[str], list[str]]:
    """(commands that race the conflicts again, conflicts that none can): one command for each op."""
    cases: defaultdict[str, list[str]] = defaultdict(list)
    others = []
    for op, key in (place_of(conflict.kept[1]) for conflict in conflicts):
        bench = catalog.op(op).cases_tagged("bench") if op in catalog.ops() else ()
        if any(case.key == key for case in bench):
            cases[op].append(key)
        else:
            others.append(f"{op} {key}")
    commands = [shlex.join(["griffin", "tune", "--ops", op, "--cases", ",".join(keys)]) for op, keys in cases.items()]
    return commands, others
