"""The JSON registry of chosen kernels: load, look up, publish atomically.

One file per device. A broken file is never used, never fatal and never changed: one warning says what is wrong and the
next source is used. Sources, the first that has an entry near enough wins:

1. the file or folder named by ``GRIFFIN_KERNELS_REGISTRY``
2. the user's data folder, where ``griffin tune`` publishes
3. ``griffin_kernels/tuned/``, measured registries that ship with the package

An entry that was measured goes before any that was predicted, whatever their sources and distances.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import msgspec

from griffin_kernels import datasheet, errors, nearness, registry_files, validity
from griffin_kernels.contract import Case, Op, Variant
from griffin_kernels.device import Device
from griffin_kernels.nearness import MAX_FACTOR as MAX_FACTOR
from griffin_kernels.nearness import distance as distance
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile
from griffin_kernels.registry_files import ENVIRONMENT_VARIABLE as ENVIRONMENT_VARIABLE
from griffin_kernels.registry_files import MOST_BYTES as MOST_BYTES
from griffin_kernels.registry_files import decode as decode
from griffin_kernels.registry_files import load as load
from griffin_kernels.registry_files import user_folder as user_folder

LOCK_SECONDS = 120.0
"""How long a process that publishes waits for others that do."""


def default_path(device: Device) -> Path:
    """The user's registry file for a device."""
    return user_folder() / f"{device.slug}.json"


def _slugs(device: Device) -> list[str]:
    """File names of a device: its own, and others that drivers give to its SKU."""
    if device.kind in ("cuda", "hip") and (sheet := datasheet.find(device.name)) is not None:
        return [device.slug, *(dataclasses.replace(device, name=name).slug for name in sheet.driver_names)]
    return [device.slug]


def within(folder: Path, device: Device) -> Path:
    """A device's registry file in a folder, of its own name or another that drivers give to its SKU; else its own."""
    return registry_files.within(folder, _slugs(device))


def sources(device: Device) -> list[Path]:
    """Registry files to consult for a device, in order; those that do not exist are left out, bar a named one."""
    return registry_files.sources(_slugs(device))


def publish(path: Path, device: Device, entries: Iterable[Entry], provenance: dict[str, Any]) -> None:
    """Merge entries into the registry file at ``path``: readers see the old file or the new one, nothing between.

    An entry replaces the one of the same op and case, but a prediction never replaces a measurement; entries that stay
    keep the provenance that they were measured under. A file of predictions for the device's SKU becomes the device's
    own. A file that cannot be read, or that is of another device, is left as it is and RegistryError raised.
    Processes that publish at once wait for each other. OutputFolderError where the folder cannot be written or locked.
    """
    new = list(entries)
    with locked(path):
        record = DeviceRecord(device.validity(), provenance)
        merged: dict[tuple[str, str], Entry] = {}
        if path.exists():
            existing = load(path)
            record = _common_device(existing, record, device, new, path)
            for entry in existing.entries:
                moved = validity.under(entry, existing.device.provenance, record.provenance)
                merged[entry.op, entry.case.key] = moved
        for entry in new:
            key = (entry.op, entry.case.key)
            if entry.status == "measured" or key not in merged or merged[key].status == "predicted":
                merged[key] = entry
        write(path, RegistryFile(schema_version=SCHEMA_VERSION, device=record, entries=list(merged.values())))


def encode(file: RegistryFile) -> bytes:
    """The bytes of a registry, entries sorted by op and case."""
    ordered = sorted(file.entries, key=lambda entry: (entry.op, entry.case.key))
    data = msgspec.json.encode(msgspec.structs.replace(file, entries=ordered))
    return msgspec.json.format(data, indent=1) + b"\n"


def write(path: Path, file: RegistryFile) -> None:
    """Write a registry whole, all or nothing."""
    write_atomically(path, encode(file))


def _common_device(
    existing: RegistryFile, record: DeviceRecord, device: Device, new: list[Entry], path: Path
) -> DeviceRecord:
    """Device and provenance of a file after entries of a device were merged into it."""
    foreseen = all(entry.status == "predicted" for entry in new)
    measured = any(entry.status == "measured" for entry in existing.entries)
    facts = existing.device.validity
    if facts == record.validity:
        return existing.device if foreseen and measured else record
    if not measured and validity.holds(existing, device) == "predicted":
        return record
    if foreseen and validity.same_sku(facts, record.validity):
        return existing.device
    raise errors.RegistryError(f"{_foreign(path, existing, device)}; publish to another file")


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock beside a file, whose folder is made if need be; OutputFolderError where that cannot be done."""
    try:
        lock = acquire(path, seconds)
    except filelock.Timeout:
        text = f"another process has held {path}.lock for {seconds:.0f} s; `griffin tune doctor` says which"
        raise errors.OutputFolderError(text) from None
    try:
        yield
    finally:
        lock.release()


def acquire(path: Path, seconds: float, option: str = "") -> filelock.BaseFileLock:
    """Take the lock beside a file, whose folder is made if need be.

    option: what the user names another folder with, such as ``" with --out"``. Raises filelock.Timeout where another
    process holds it for ``seconds``, OutputFolderError where it cannot be had at all.
    """
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        raise
    except NotImplementedError:
        text = f"{path}.lock cannot be locked: its file system has no locks; use a folder on a local disk{option}"
        raise errors.OutputFolderError(text) from None
    except OSError as error:
        text = f"{path} cannot be written: {error.strerror or error}; use a folder that can be{option}"
        raise errors.OutputFolderError(text) from None
    return lock


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``, all or nothing: a temporary file beside it, fsync, rename."""
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            text = f"{path} cannot be written: {error.strerror}; the old file is as it was"
            raise errors.OutputFolderError(text) from None
        raise


@dataclass(frozen=True)
class Match:
    """A registry entry that may serve a case. distance: largest |log2 ratio| of the dims, or minor flags; 0 is exact.

    stale: what differs from when it was measured, ``torch 2.11.0 (now 2.13.0)``; empty where it is fresh.
    """

    entry: Entry
    variant: Variant
    config: Any
    source: str
    distance: float
    stale: tuple[str, ...] = ()


class Registry:
    """The usable entries of one or more registry files, for one device."""

    def __init__(self, device: Device, files: Iterable[tuple[str, RegistryFile]]) -> None:
        self.device = device
        self.files = list(files)
        self.passed_over: set[str] = set()
        """Ops of which an entry was passed over, with a warning; ``*`` where a whole file was."""
        self._told: set[str] = set()
        self._usable: dict[str, list[Match]] = {}

    @classmethod
    def open(cls, device: Device) -> Registry:
        """The registry of a device from all sources; each unusable file gives one RegistryWarning."""
        opened = cls(device, [])
        for path in sources(device):
            try:
                opened.files.append((str(path), load_for(path, device)))
            except errors.RegistryError as error:
                opened._tell(str(path), "*", f"{error}. It is not used.")
        return opened

    def _tell(self, source: str, op: str, text: str) -> None:
        """One warning per file: a package update can change the kernels of every op."""
        self.passed_over.add(op)
        if source not in self._told:
            self._told.add(source)
            errors.warn(text, errors.RegistryWarning)

    def _entries(self, op: Op) -> list[Match]:
        """Matches at distance 0 of an op's entries whose kernel is still the one that was measured."""
        if op.name in self._usable:
            return self._usable[op.name]
        usable = self._usable[op.name] = []
        for source, file in self.files:
            problems = []
            for entry in (entry for entry in file.entries if entry.op == op.name):
                try:
                    variant, config = validity.kernel(entry)
                except errors.RegistryError as error:
                    problems.append(str(error))
                    continue
                usable.append(Match(entry, variant, config, source, 0.0, validity.stale(entry, file, self.device)))
            if problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                text = f"registry {source}: {problems[0]}{more}; these entries are not used, run `griffin tune`"
                self._tell(source, op.name, text)
        return usable

    def matches(self, op: Op, case: Case) -> list[Match]:
        """Entries that may serve a case: measured ones first, of these the best source first, then the nearest."""
        order = {source: place for place, (source, _) in reversed(list(enumerate(self.files)))}
        found = (
            dataclasses.replace(known, distance=far)
            for known in self._entries(op)
            if (far := distance(op, case, known.entry.case)) is not None
        )
        return sorted(found, key=lambda m: nearness.preference(m.entry.status, order[m.source], m.distance))


def load_for(path: Path, device: Device) -> RegistryFile:
    """Load a registry that must hold for ``device``: measured on it, or predicted for its SKU; else RegistryError."""
    file = load(path)
    if validity.holds(file, device) is None:
        raise errors.RegistryError(_foreign(path, file, device))
    return file


def _foreign(path: Path, file: RegistryFile, device: Device) -> str:
    other = validity.named(file.device.validity)
    return f"registry {path} is of another device ({other}), this is {device.name}, {device.arch}"
