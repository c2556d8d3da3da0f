"""What ends a whole tuning run: all ceilings of the device, and the study of its kernels and of whole models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from griffin_kernels import device as devices
from griffin_kernels import dispatch
from griffin_kernels.device import Device
from roofline import measure, store, study
from roofline.records import FILE_NAME, Study
from tuning.plan import Options
from tuning.run import Outcome

CEILING_SECONDS = 10.0
"""Time spent on sampling ceilings: enough for intervals of a few per cent on a quiet machine."""

PASS_SECONDS = {"quick": 0.5, "default": 1.5, "thorough": 6.0}
"""Time spent on each forward pass that is run, by budget."""


def wanted(options: Options) -> bool:
    """Whether a run covers what models need: all ops, cases and dtypes."""
    return not (options.ops or options.cases or options.dtypes)


def run(device: Device, options: Options, outcome: Outcome, tell: Callable[[str], None]) -> tuple[Path, Study]:
    """Measure the ceilings, study the device with the registry of ``outcome``; returns the file, and what is in it.

    Ceilings go to the user's data folder too, unless the run had a folder of its own. Raises OutputFolderError.
    """
    ceilings = measure.measure(device, lambda what, share: tell(f"ceilings: {what}"), CEILING_SECONDS)
    if outcome.paths.is_users(device):
        store.save(store.default_path(device), device, ceilings, devices.provenance(device))
    seconds = PASS_SECONDS[options.budget]
    with dispatch.use(registry=outcome.paths.registry):
        found = study.study(device, ceilings, outcome.entries, seconds=seconds, tell=tell)
    path = outcome.paths.journal.with_name(FILE_NAME)
    study.write(path, found)
    return path, found
