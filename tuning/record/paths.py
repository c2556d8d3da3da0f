"""Where a run puts its results."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from griffin_kernels import errors, registry
from griffin_kernels.device import Device
from roofline.store import results_folder
from tuning.record.journal import FILE_NAME


@dataclass(frozen=True)
class Paths:
    """The files of a run."""

    journal: Path
    registry: Path
    report: Path

    @classmethod
    def choose(cls, out: Path | None, device: Device) -> Paths:
        """Everything into ``out``; without it, the user's data folder."""
        if out is not None:
            return cls(out / FILE_NAME, out / f"{device.slug}.json", out / "report.html")
        folder = results_folder(device)
        return cls(folder / FILE_NAME, registry.default_path(device), folder / "report.html")

    def is_users(self, device: Device) -> bool:
        """Whether results go to the user's data folder, where dispatch looks."""
        return self.registry == registry.default_path(device)

    def make_folders(self) -> None:
        """Make the folders and prove that they can be written; OutputFolderError where they cannot."""
        for folder in {self.journal.parent, self.registry.parent, self.report.parent}:
            make_folder(folder)

    def prepare(self, device: Device) -> None:
        """Make the folders and see that the registry can be merged into, before any work is done.

        Raises OutputFolderError or RegistryError.
        """
        self.make_folders()
        if self.registry.exists():
            registry.load_for(self.registry, device)


def make_folder(folder: Path) -> None:
    """Make a folder and prove that it can be written; OutputFolderError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prove_writable(folder)
    except OSError as error:
        why = error.strerror or error
        raise errors.OutputFolderError(
            f"results cannot be written to {folder}: {why}; choose another folder with --out"
        ) from None


def prove_writable(folder: Path) -> None:
    """Write a byte to a file that is gone afterwards; OSError where that fails."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0")
        probe.flush()
