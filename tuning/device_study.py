"""The study that follows a complete tuning run: all ceilings of the device, its kernels and whole models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from griffin_kernels import device as devices
from griffin_kernels import dispatch
from griffin_kernels.device import Device
from roofline import store, study
from roofline.study import Timing
from roofline.study_records import FILE_NAME, Study
from tuning.run import Outcome

TIMING: Mapping[str, Timing] = {
    "quick": Timing(seconds=0.0, ceilings=3.0, between=1.0),
    "default": Timing(seconds=15.0, ceilings=3.0, between=1.0),
    "thorough": Timing(seconds=240.0, ceilings=20.0),
}
"""How long the study measures, by budget."""


def wanted(outcome: Outcome) -> bool:
    """Whether a study follows a run: it must cover all ops, cases and dtypes, as models need them."""
    return outcome.options.whole and not outcome.left


def run(device: Device, outcome: Outcome, tell: Callable[[str], None]) -> tuple[Path, Study]:
    """Measure the ceilings, study the device with the registry of ``outcome``; returns the file, and what is in it.

    Ceilings go to the user's data folder too, unless the run had a folder of its own. Raises OutputFolderError.
    """
    facts, stored = devices.provenance(device), store.default_path(device)
    shared = outcome.paths.is_users(device)
    before = store.earlier(stored, device, facts) if shared else []
    with dispatch.use(registry=outcome.paths.registry):
        found = study.study(device, outcome.entries, earlier=before, timing=TIMING[outcome.options.budget], tell=tell)
    if shared:
        store.save(stored, device, found.ceilings, facts)
    path = outcome.paths.journal.with_name(FILE_NAME)
    study.write(path, found)
    return path, found
