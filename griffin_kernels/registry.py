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
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import msgspec
import platformdirs

from griffin_kernels import datasheet, errors, records, validity
from griffin_kernels.contract import Case, Op, Variant
from griffin_kernels.device import Device
from griffin_kernels.records import SCHEMA_VERSION, DeviceRecord, Entry, RegistryFile

ENVIRONMENT_VARIABLE = "GRIFFIN_KERNELS_REGISTRY"

MAX_FACTOR = 4
"""Largest ratio of any one dimension at which an entry still speaks for a case."""

MOST_BYTES = 64 * 2**20
"""A larger file is no registry, and is not read. An entry takes about a kilobyte."""

LOCK_SECONDS = 120.0
"""How long a process that publishes waits for others that do."""


def user_folder() -> Path:
    """Where ``griffin tune`` publishes unless told otherwise."""
    return Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / "registry"


def default_path(device: Device) -> Path:
    """The user's registry file for a device."""
    return user_folder() / f"{device.slug}.json"


def within(folder: Path, device: Device) -> Path:
    """A device's registry file in a folder, of its own name or another that drivers give to its SKU; else its own."""
    slugs = [device.slug]
    if device.kind in ("cuda", "hip") and (sheet := datasheet.find(device.name)) is not None:
        slugs += [dataclasses.replace(device, name=name).slug for name in sheet.driver_names]
    paths = [folder / f"{slug}.json" for slug in slugs]
    # os.path answers False where pathlib raises PermissionError
    return next((path for path in paths if os.path.exists(path)), paths[0])


def sources(device: Device) -> list[Path]:
    """Registry files to consult for a device, in order; those that do not exist are left out, bar a named one."""
    found = [within(folder, device) for folder in (user_folder(), Path(__file__).parent / "tuned")]
    found = [path for path in found if os.path.exists(path)]
    if not (text := os.environ.get(ENVIRONMENT_VARIABLE)):
        return found
    named = Path(os.path.expanduser(text))
    return [within(named, device) if os.path.isdir(named) and named.suffix != ".json" else named, *found]


def load(path: Path) -> RegistryFile:
    """Read and validate one registry file; RegistryError says in one sentence what is wrong with it."""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for, a device may never end
            kind = "a directory" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            raise errors.RegistryError(f"registry {path} is {kind}, expected a JSON file")
        if facts.st_size > MOST_BYTES:
            size = f"{facts.st_size / 2**20:.0f} MiB"
            raise errors.RegistryError(f"registry {path} has {size}, more than any registry; move it away")
        raw = Path(path).read_bytes()
    except OSError as error:
        raise errors.RegistryError(f"registry {path} cannot be read: {error.strerror or error}") from None
    return decode(raw, path)


def decode(raw: bytes, path: Path) -> RegistryFile:
    """A registry from the bytes of a file; RegistryError names ``path`` and what is wrong with it."""
    return records.decode(
        raw, RegistryFile, SCHEMA_VERSION, f"registry {path}", errors.RegistryError,
        later="; upgrade griffin-kernels or tune again", broken="a valid registry; move it away and tune again",
    )  # fmt: skip


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


def write(path: Path, file: RegistryFile) -> None:
    """Write a registry whole, entries sorted by op and case."""
    ordered = sorted(file.entries, key=lambda entry: (entry.op, entry.case.key))
    data = msgspec.json.encode(msgspec.structs.replace(file, entries=ordered))
    write_atomically(path, msgspec.json.format(data, indent=1) + b"\n")


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


def distance(op: Op, wanted: Case, known: Case) -> float | None:
    """How far an entry's sizes are from a case's; None where it cannot speak for it.

    A minor flag that only one of them has counts as a factor of two in a size.
    """
    other = set(wanted.flags) ^ set(known.flags)
    if wanted.dtype != known.dtype or other - set(op.minor_flags) or set(wanted.dims) != set(known.dims):
        return None
    far = float(len(other))
    for name, size in wanted.dims.items():
        if name in op.free_dims or size == known.dims[name]:
            continue
        low, high = sorted((size, known.dims[name]))
        # in integers: a file may hold sizes that no float does
        if name in op.exact_dims or low < 1 or high > MAX_FACTOR * low:
            return None
        far = max(far, math.log2(high / low))
    return far


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
        return sorted(found, key=lambda m: (m.entry.status == "predicted", order[m.source], m.distance))


def load_for(path: Path, device: Device) -> RegistryFile:
    """Load a registry that must hold for ``device``: measured on it, or predicted for its SKU; else RegistryError."""
    file = load(path)
    if validity.holds(file, device) is None:
        raise errors.RegistryError(_foreign(path, file, device))
    return file


def _foreign(path: Path, file: RegistryFile, device: Device) -> str:
    other = validity.named(file.device.validity)
    return f"registry {path} is of another device ({other}), this is {device.name}, {device.arch}"
