"""Checks of the installation, the machine and its registries: ``griffin tune doctor``."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """level: ``ok``, ``note`` (works, but good to know) or ``problem``. fix: what to do about it, if anything."""

    level: Literal["ok", "note", "problem"]
    area: str
    what: str
    fix: str = ""


def examine(device: str = "") -> list[Finding]:
    """All findings, in the order in which a person would ask. device: whose registry; this machine's by default.

    Every check runs, whatever the others find, and nothing is changed. DeviceError where the device is not there.
    """
    from griffin_kernels import device as devices
    from griffin_kernels import registry
    from tuning.doctor import machine, registries
    from tuning.record.paths import Paths

    here = devices.detect(device or None)
    journal = Paths.choose(None, here).journal
    installed = [*machine.versions(), *machine.backends(), machine.compiler()]
    installed += [*machine.numba_cache(), *machine.variables()]
    around = [*machine.gpu(), *machine.cores(), *machine.load(), *machine.folder()]
    own = [*registries.registries(here), *registries.unfinished(journal)]
    locks = [*registries.lock(registry.default_path(here)), *registries.lock(journal)]
    return [*installed, *around, *own, *locks]
