"""The Device of a GPU that is not there, made of its datasheet."""

from __future__ import annotations

from griffin_kernels import errors
from griffin_kernels.datasheet import Datasheet
from griffin_kernels.device import Device
from tuning.static.targets import target


def device_of(sheet: Datasheet) -> Device:
    """What the driver would report, as far as the datasheet knows.

    Raises DeviceError where Triton does not compile for the architecture, or the datasheet lacks what identifies a GPU.
    """
    if sheet.units is None or not sheet.driver_names:
        raise errors.DeviceError(f"the datasheet of {sheet.sku} has no units or no driver_names")
    where = target(sheet.arch)
    return Device(
        kind=where.backend,
        name=sheet.driver_names[0],
        arch=sheet.arch,
        units=sheet.units,
        memory_bytes=sheet.memory_bytes,
        last_level_cache_bytes=round((sheet.l2_mb or 0) * 2**20),
        warp_size=where.warp_size,
    )
