"""Keeps measured ceilings: one JSON file per device, replaced whole, never trusted and never changed when broken.

Sources, the first that is of the device wins:

1. the file named by ``GRIFFIN_KERNELS_CEILINGS``, which must be of the device
2. the user's data folder, where ``griffin roofline measure`` writes
3. ``griffin_kernels/tuned/ceilings/``, which ships with the package

Reading needs no PyTorch.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import platformdirs

import griffin_kernels
from griffin_kernels import errors, records
from griffin_kernels.records import DeviceRecord
from roofline.ceilings import CEILINGS_VERSION, Ceiling, Ceilings, CeilingsFile, best_of

if TYPE_CHECKING:
    from griffin_kernels.device import Device

ENVIRONMENT_VARIABLE = "GRIFFIN_KERNELS_CEILINGS"


def default_path(device: Device, folder: str = "ceilings") -> Path:
    """The user's ceilings file for a device, or one of another folder."""
    return Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / folder / f"{device.slug}.json"


def shipped_path(device: Device) -> Path:
    """Where the ceilings of a device are, if they ship with the package."""
    return Path(str(griffin_kernels.__file__)).parent / "tuned" / "ceilings" / f"{device.slug}.json"


def load(path: Path) -> CeilingsFile:
    """Read and validate one file; CeilingsError says in one sentence what is wrong with it."""
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise errors.CeilingsError(f"ceilings {path} is a directory, expected a JSON file") from None
    except OSError as error:
        raise errors.CeilingsError(f"ceilings {path} cannot be read: {error.strerror}") from None
    return records.decode(
        raw, CeilingsFile, CEILINGS_VERSION, f"ceilings {path}", errors.CeilingsError,
        later="; upgrade griffin-kernels or measure into another file",
        broken="a valid ceilings file; move it away and measure again",
    )  # fmt: skip


def load_of(path: Path, device: Device) -> CeilingsFile:
    """Load a file that must be of ``device``; CeilingsError names both devices otherwise."""
    file = load(path)
    if file.device.validity != device.validity():
        raise errors.CeilingsError(
            f"ceilings {path} is of another device ({_told(file.device.validity)}), this is {_told(device.validity())}"
        )
    return file


def _told(facts: dict[str, Any]) -> str:
    units = f"{facts['units']} units" if "units" in facts else "units unknown"
    return f"{facts.get('name', 'unnamed')}, {facts.get('arch', 'arch unknown')}, {units}"


def load_for(device: Device) -> Ceilings | None:
    """The measured ceilings of a device, or None if there are none.

    A file named by the user must be of the device: CeilingsError otherwise. Any other that cannot be used is passed
    over with a CeilingsWarning.
    """
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Ceilings.of(load_of(Path(named).expanduser(), device))
    for path in (default_path(device), shipped_path(device)):
        if not path.exists():
            continue
        try:
            return Ceilings.of(load_of(path, device))
        except errors.CeilingsError as error:
            warnings.warn(f"{error}. It is not used.", errors.CeilingsWarning, stacklevel=2)
    return None


def results_folder(device: Device) -> Path:
    """Where what was measured on a device lies in the user's data folder, the tuner's journal with it."""
    return default_path(device, "results").with_suffix("")


def make_parent(path: Path, what: str) -> None:
    """Make a file's folder and prove that it can be written; OutputFolderError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        raise errors.OutputFolderError(
            f"{what} cannot be written to {path.parent}: {error.strerror}; choose another file with --out"
        ) from None


def prepare(path: Path, device: Device) -> None:
    """Make the folder, and prove before any work is done that the file can be written and may be replaced.

    Raises OutputFolderError, or CeilingsError where something else than ceilings of ``device`` is in the way.
    """
    make_parent(path, "ceilings")
    if path.exists():
        load_of(path, device)


def save(
    path: Path, device: Device, ceilings: Iterable[Ceiling], provenance: dict[str, Any], *, fresh: bool = False
) -> list[Ceiling]:
    """Put ceilings into the file at ``path`` and return what it holds then; readers see the old file or the new one.

    Each is the best of this measurement and of what the file holds from the same software; ``fresh`` forgets that.
    A file that is broken or of another device is left as it is and CeilingsError raised.
    """
    from griffin_kernels import registry  # and with it torch

    prepare(path, device)
    with registry.locked(path):
        kept = list(ceilings) if fresh else best_of(earlier(path, device, provenance), ceilings)
        record = DeviceRecord(device.validity(), provenance)
        file = CeilingsFile(schema_version=CEILINGS_VERSION, device=record, ceilings=kept)
        registry.write_atomically(path, msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
    return kept


def earlier(path: Path, device: Device, provenance: dict[str, Any]) -> list[Ceiling]:
    """The ceilings of a file that were measured with the same software; empty if there is no such file."""
    if not path.exists():
        return []
    file, whenever = load_of(path, device), {"date": None}
    return file.ceilings if file.device.provenance | whenever == provenance | whenever else []
