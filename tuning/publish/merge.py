"""Several registries of one device as one: of each op and case the newest measurement.

There is no "keep the faster": the two times were measured in different runs, and the smaller one says more about the
quieter machine than about the kernel. Who wants to know which kernel is faster races them again.
"""

from __future__ import annotations

import datetime
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from griffin_kernels import catalog, errors, validity
from griffin_kernels.records import SCHEMA_VERSION, Entry, RegistryFile
from roofline.units import units_text
from tuning.publish import diff
from tuning.record.journal_records import Place, place_of


@dataclass(frozen=True)
class Conflict:
    """One op and case for which registries name different kernels. kept, dropped: with the files they are from."""

    kept: tuple[Path, Entry]
    dropped: tuple[Path, Entry]

    @property
    def tied(self) -> bool:
        """True if one of the races could not tell the two kernels apart."""
        return diff.winner(self.kept[1], self.dropped[1]) == "tie"


def merge(files: Sequence[tuple[Path, RegistryFile]]) -> tuple[RegistryFile, list[Conflict]]:
    """(the entries of all files, what they disagree on).

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
            if not diff.same_kernel(kept[1], dropped[1]):
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
