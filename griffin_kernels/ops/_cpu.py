"""Why native code cannot run a case: what all of it needs, said once."""

from __future__ import annotations

from typing import Any

from griffin_kernels.case import Case
from griffin_kernels.contract import config_dict
from griffin_kernels.device import Device


def has(device: Device, extension: str) -> bool:
    """Whether a CPU has an extension of its instruction set, by its name in lower case (``f16c``)."""
    return extension in dict(device.details).get("isa", ())


def unfit_cpu(case: Case, device: Device, config: Any, *, float64: bool = True) -> str | None:
    """Why native code cannot run, in words, or None. float64: whether there is a kernel for such data.

    Numbers in a configuration are sizes of blocks: each is at least 1.
    """
    if device.kind != "cpu":
        return "needs a CPU"
    if case.dtype == "float64" and not float64:
        return "computes in float32"
    if case.dtype == "float16" and device.arch.startswith("x86") and not has(device, "f16c"):
        return "float16 needs a processor with F16C"
    sizes = {name: value for name, value in config_dict(config).items() if not isinstance(value, bool)}
    small = [name for name, value in sizes.items() if value < 1]
    return f"{' and '.join(small)} must be at least 1" if small else None
