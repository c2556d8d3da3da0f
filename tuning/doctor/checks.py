"""All checks of ``griffin tune doctor``. Every check runs, whatever the others find, and nothing is changed."""

from __future__ import annotations

from griffin_kernels import device as devices
from tuning.doctor import Finding, installation, machine, registries
from tuning.record.paths import Paths


def examine(device: str = "") -> list[Finding]:
    """All findings, in the order in which a person would ask. device: whose registry; this machine's by default.

    Raises DeviceError where the device is not there.
    """
    here = devices.detect(device or None)
    journal = Paths.choose(None, here).journal
    return [*installation.examine(), *machine.examine(), *registries.examine(here, journal)]
