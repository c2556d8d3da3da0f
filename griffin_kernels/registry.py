"""The JSON registry of chosen kernels: load, look up, publish atomically.

One file per device. A broken file is never used, never fatal and never changed: one warning says what is wrong and the
next source is used. Sources, the first that has an entry near enough wins:

1. the file or folder named by ``GRIFFIN_KERNELS_REGISTRY``
2. the user's data folder, where ``griffin tune`` publishes
3. ``griffin_kernels/tuned/``, measured registries that ship with the package
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import msgspec
import platformdirs

from griffin_kernels import catalog, errors, records
from griffin_kernels.contract import Case, Op, Variant
from griffin_kernels.device import Device
from griffin_kernels.records import SCHEMA_VERSION, CaseRecord, DeviceRecord, Entry, RegistryFile

ENVIRONMENT_VARIABLE = "GRIFFIN_KERNELS_REGISTRY"

MAX_DISTANCE = 2.0
"""Largest log2 ratio of any one dimension at which an entry still speaks for a case: a factor of four."""


def user_folder() -> Path:
    """Where ``griffin tune`` publishes unless told otherwise."""
    return Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / "registry"


def default_path(device: Device) -> Path:
    """The user's registry file for a device."""
    return user_folder() / f"{device.slug}.json"


def sources(device: Device) -> list[Path]:
    """Registry files to consult for a device, in order; those that do not exist are left out, bar a named one."""
    found = []
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        path = Path(named).expanduser()
        found.append(path / f"{device.slug}.json" if path.is_dir() and not path.suffix == ".json" else path)
    shipped = Path(__file__).parent / "tuned" / f"{device.slug}.json"
    found += [path for path in (default_path(device), shipped) if path.exists()]
    return found


def load(path: Path) -> RegistryFile:
    """Read and validate one registry file; RegistryError says in one sentence what is wrong with it."""
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise errors.RegistryError(f"registry {path} is a directory, expected a JSON file") from None
    except OSError as error:
        raise errors.RegistryError(f"registry {path} cannot be read: {error.strerror}") from None
    return decode(raw, path)


def decode(raw: bytes, path: Path) -> RegistryFile:
    """A registry from the bytes of a file; RegistryError names ``path`` and what is wrong with it."""
    return records.decode(
        raw, RegistryFile, SCHEMA_VERSION, f"registry {path}", errors.RegistryError,
        later="; upgrade griffin-kernels or tune again", broken="a valid registry; move it away and tune again",
    )  # fmt: skip


def publish(path: Path, device: Device, entries: Iterable[Entry], provenance: dict[str, Any]) -> None:
    """Merge entries into the registry file at ``path``: readers see the old file or the new one, nothing between.

    An entry replaces the one of the same op and case. A file that cannot be read, or that is of another device, is
    left as it is and RegistryError raised. Processes that publish at once wait for each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        merged: dict[tuple[str, str], Entry] = {}
        if path.exists():
            existing = load(path)
            if existing.device.validity != device.validity():
                raise errors.RegistryError(
                    f"registry {path} is of another device ({existing.device.validity.get('name')}), "
                    f"this is {device.name}; publish to another file"
                )
            merged = {(e.op, e.case.case(e.op).key): e for e in existing.entries}
        for entry in entries:
            merged[entry.op, entry.case.case(entry.op).key] = entry
        file = RegistryFile(
            schema_version=SCHEMA_VERSION,
            device=DeviceRecord(device.validity(), provenance),
            entries=[merged[key] for key in sorted(merged)],
        )
        write_atomically(path, msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")


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
            raise errors.OutputFolderError(
                f"{path} cannot be written: {error.strerror}; the old file is as it was"
            ) from None
        raise


@dataclass(frozen=True)
class Match:
    """A registry entry that may serve a case. distance: largest |log2 ratio| of the dims; 0 is exact."""

    entry: Entry
    variant: Variant
    config: Any
    source: str
    distance: float


def distance(op: Op, wanted: Case, known: CaseRecord) -> float | None:
    """How far an entry's sizes are from a case's; None where it cannot speak for it."""
    if wanted.dtype != known.dtype or set(wanted.flags) != set(known.flags) or set(wanted.size) != set(known.dims):
        return None
    far = 0.0
    for name, size in wanted.dims:
        if name in op.free_dims or size == known.dims[name]:
            continue
        if name in op.exact_dims or min(size, known.dims[name]) < 1:
            return None
        far = max(far, abs(math.log2(size / known.dims[name])))
    return far if far <= MAX_DISTANCE else None


class Registry:
    """The usable entries of one or more registry files, for one device."""

    def __init__(self, device: Device, files: Iterable[tuple[str, RegistryFile]]) -> None:
        self.device = device
        self.files = list(files)
        self._usable: dict[str, list[tuple[str, Entry, Variant, Any]]] = {}

    @classmethod
    def open(cls, device: Device) -> Registry:
        """The registry of a device from all sources; each unusable file gives one RegistryWarning."""
        files = []
        for path in sources(device):
            try:
                files.append((str(path), load_for(path, device)))
            except errors.RegistryError as error:
                warnings.warn(f"{error}. It is not used.", errors.RegistryWarning, stacklevel=2)
        return cls(device, files)

    def _entries(self, op: Op) -> list[tuple[str, Entry, Variant, Any]]:
        """(source, entry, variant, config) of an op whose kernel is still the one that was measured."""
        if op.name in self._usable:
            return self._usable[op.name]
        usable = []
        for source, file in self.files:
            problems = []
            for entry in file.entries:
                if entry.op != op.name:
                    continue
                try:
                    variant = catalog.variant(f"{entry.op}/{entry.variant}")
                    config = variant.parse_config(entry.config)
                except (errors.UnknownVariantError, errors.ConfigError) as error:
                    problems.append(str(error))
                    continue
                if entry.source_hash != variant.source_hash:
                    problems.append(f"{variant.key} has changed since it was measured")
                    continue
                usable.append((source, entry, variant, config))
            if problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                text = f"registry {source}: {problems[0]}{more}; these entries are not used, run `griffin tune`"
                warnings.warn(text, errors.RegistryWarning, stacklevel=4)
        self._usable[op.name] = usable
        return usable

    def matches(self, op: Op, case: Case) -> list[Match]:
        """Entries that may serve a case, best source first, then nearest."""
        found = []
        order = [source for source, _ in self.files]
        for source, entry, variant, config in self._entries(op):
            far = distance(op, case, entry.case)
            if far is not None:
                found.append(Match(entry, variant, config, source, far))
        return sorted(found, key=lambda match: (order.index(match.source), match.distance))


def load_for(path: Path, device: Device) -> RegistryFile:
    """Load a registry that must be of ``device``; RegistryError otherwise."""
    file = load(path)
    if file.device.validity != device.validity():
        raise errors.RegistryError(
            f"registry {path} is of another device ({file.device.validity.get('name', 'unnamed')}, "
            f"{file.device.validity.get('arch', '?')}), this is {device.name}, {device.arch}"
        )
    return file


@functools.cache
def schema() -> dict[str, Any]:
    """JSON Schema of a registry file, as shipped in ``registry.schema.json``."""
    return msgspec.json.schema(RegistryFile)


def schema_text() -> str:
    """The text of ``registry.schema.json``."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"
