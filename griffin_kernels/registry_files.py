"""Files of registries: where they are, and how one is read. Needs no PyTorch.

Sources, in order, are in ``griffin_kernels.registry``. A file is named after a device as its driver reports it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from griffin_kernels import datasheet, errors, records
from griffin_kernels.records import SCHEMA_VERSION, RegistryFile

ENVIRONMENT_VARIABLE = "GRIFFIN_KERNELS_REGISTRY"

MOST_BYTES = 64 * 2**20
"""A larger file is no registry, and is not read. An entry takes about a kilobyte."""

SHIPPED = Path(__file__).parent / "tuned"
"""The registries that ship with the package."""


def user_folder() -> Path:
    """Where ``griffin tune`` publishes unless told otherwise."""
    return Path(platformdirs.user_data_dir("griffin-kernels", appauthor=False)) / "registry"


def within(folder: Path, slugs: Sequence[str]) -> Path:
    """The first file of a folder that has one of a device's names; the first name's where there is none."""
    paths = [folder / f"{slug}.json" for slug in slugs]
    # os.path answers False where pathlib raises PermissionError
    return next((path for path in paths if os.path.exists(path)), paths[0])


def sources(slugs: Sequence[str]) -> list[Path]:
    """Registry files to consult for a device of these names, in order: named, the user's, shipped.

    Those that do not exist are left out, bar a named one.
    """
    found = [within(folder, slugs) for folder in (user_folder(), SHIPPED)]
    found = [path for path in found if os.path.exists(path)]
    if not (text := os.environ.get(ENVIRONMENT_VARIABLE)):
        return found
    named = Path(os.path.expanduser(text))
    return [within(named, slugs) if os.path.isdir(named) and named.suffix != ".json" else named, *found]


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


def same_sku(facts: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """True if two devices, by their validity facts, are the same SKU as far as a datasheet can tell."""
    if facts.get("mig") or others.get("mig"):
        return False
    if any(facts.get(name) != others.get(name) for name in ("kind", "arch", "units")):
        return False
    names = [str(facts.get("name")), str(others.get("name"))]
    if names[0] == names[1]:
        return True
    sheet = datasheet.find(names[0])
    return sheet is not None and names[1] in sheet.driver_names
