"""What a registry says, entry by entry, and whether each entry would be used here."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from griffin_kernels import catalog, errors, registry, validity
from griffin_kernels.device import Device
from griffin_kernels.records import Entry, RegistryFile


@dataclass(frozen=True)
class Shown:
    """An entry and its state here. state: ``used``, ``stale``, ``predicted`` or ``unused``; why: in words."""

    entry: Entry
    case: str
    state: str
    why: str


def locate(path: Path | None, device: Device) -> Path:
    """The registry file that a user means by ``path``: the file, or the one in a folder, or for None dispatch's first.

    A folder may hold several devices: this device's file is taken, else the only registry that there is. Raises
    RegistryError.
    """
    if path is None:
        if sources := registry.sources(device):
            return sources[0]
        text = f"there is no registry for {device.name}; `griffin tune` makes {registry.default_path(device)}"
        raise errors.RegistryError(text)
    path = path.expanduser()
    if not path.is_dir():
        return path
    own = registry.within(path, device)
    if own.exists():
        return own
    found = []
    for file in sorted(path.glob("*.json")):
        with contextlib.suppress(errors.RegistryError):
            registry.load(file)
            found.append(file)
    if len(found) == 1:
        return found[0]
    if not found:
        raise errors.RegistryError(
            f"no registry in folder {path}; `griffin tune --out {path}` makes one, or name a file"
        )
    names = ", ".join(file.name for file in found)
    raise errors.RegistryError(f"{path} holds several registries and none of {device.slug}; name one: {names}")


def counted(shown: Sequence[Shown]) -> str:
    """``3 used, 1 stale``: how many entries there are of each state."""
    counts = Counter(row.state for row in shown)
    return ", ".join(f"{counts[state]} {state}" for state in ("used", "stale", "predicted", "unused") if counts[state])


def entries(file: RegistryFile, device: Device) -> list[Shown]:
    """Every entry of a registry with its state on a device, in the order of the file."""
    return [Shown(entry, validity.quoted(entry.case.key, 120), *_state(entry, file, device)) for entry in file.entries]


def _state(entry: Entry, file: RegistryFile, device: Device) -> tuple[str, str]:
    """(state, why)."""
    try:
        if set(catalog.op(entry.op).cases[0].dims) != set(entry.case.dims):
            raise errors.RegistryError(f"{entry.op} has no case with these dimensions")
        validity.kernel(entry)
    except (errors.UnknownOpError, errors.RegistryError) as error:
        return "unused", str(error)
    if validity.holds(file, device) is None:
        return "unused", f"of another device: {validity.named(file.device.validity)}"
    if entry.status == "predicted":
        return "predicted", "never ran on this device"
    differs = validity.stale(entry, file, device)
    return "stale" if differs else "used", ", ".join(differs)
