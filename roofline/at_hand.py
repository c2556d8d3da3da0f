"""The target that is this machine's own device: measured ceilings, and the kernels that the registry has for it."""

from __future__ import annotations

from collections.abc import Callable

from griffin_kernels import dispatch, errors
from griffin_kernels.case import BenchCase
from griffin_kernels.device import Device
from roofline import store
from roofline.ceilings import Ceilings
from roofline.floors import op_floors
from roofline.target import AnalysisTarget, Tuned


def tuned_by(device: Device, ceilings: Ceilings) -> Callable[[BenchCase], Tuned | None]:
    """What the registry knows: the share of its floor that the nearest measured entry reached."""

    def find(case: BenchCase) -> Tuned | None:
        match = dispatch.select(case.op, case, device).match
        if match is None or match.entry.median_s is None:
            return None
        known = match.entry.case
        floor = max(op_floors(case.op, known, ceilings).values(), default=0.0)
        if not floor:
            return None
        share = floor / match.entry.median_s
        return Tuned(share, f"{match.variant.name}, measured at {share:.0%} of its floor ({known.key})")

    return find


def at_hand(device: Device, ceilings: Ceilings | None = None) -> AnalysisTarget:
    """The device as it was measured; DeviceError where its ceilings never were."""
    known = ceilings or store.load_for(device)
    if known is None:
        raise errors.DeviceError(
            f"the ceilings of {device.name} have not been measured; `griffin roofline measure` takes half a minute"
        )
    return AnalysisTarget(
        name=device.slug,
        ceilings=known,
        memory_bytes=device.memory_bytes,
        asynchronous=device.kind != "cpu",
        measured=True,
        tuned=tuned_by(device, known),
        assumptions=(
            f"ceilings were measured on this {device.name}",
            "tuned kernels reach the share of their floor that the nearest entry of the registry reached",
            "everything else runs at the median rates sampled for the ceilings, one PyTorch kernel after the other",
        ),
    )
