"""Every error and warning a user of the package can see, one class each.

Messages say what was wrong and what would work. Classes that report a bad argument also derive from the
built-in exception that plain PyTorch code would raise, so existing ``except ValueError`` keeps working.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import FrameType


class GriffinKernelsError(Exception):
    """Base of all errors raised by this package."""


class ArgumentError(GriffinKernelsError, ValueError):
    """An argument is missing, non-finite, out of range, or does not fit the others."""


class ShapeError(ArgumentError):
    """A tensor has the wrong number of dimensions, or a dimension disagrees with another tensor's."""


class DtypeError(GriffinKernelsError, TypeError):
    """A tensor has a dtype that the operation does not take."""


class DeviceMismatchError(GriffinKernelsError, ValueError):
    """Tensors of one call live on different devices."""


class UnknownNameError(GriffinKernelsError, KeyError):
    """There is nothing of that name; the message lists what there is."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownOpError(UnknownNameError):
    """No op of that name is in the catalogue."""


class UnknownVariantError(UnknownNameError):
    """No variant of that name is in the catalogue."""


class ConfigError(GriffinKernelsError, ValueError):
    """A configuration has an unknown field or a value of the wrong type."""


class RejectedError(GriffinKernelsError, RuntimeError):
    """A variant that was asked for by name cannot run this case on this device."""


class NoVariantError(GriffinKernelsError, RuntimeError):
    """No variant of an op can run a case; the message lists every reason."""


class OutOfResourcesError(GriffinKernelsError, RuntimeError):
    """A kernel needs more shared memory or registers of a block than the device has.

    before: how many launches of the same call had already run.
    """

    def __init__(self, message: str, before: int = 0) -> None:
        super().__init__(message)
        self.before = before


class FallbackWarning(UserWarning):
    """A kernel does not fit the device, and another takes its place. Shown once per kernel."""


class CaptureError(GriffinKernelsError, RuntimeError):
    """The first call of its shapes is inside a CUDA graph capture; one call before the capture makes it work."""


class TransformError(GriffinKernelsError, NotImplementedError):
    """A transform of torch that the operators have no rule for: forward-mode derivatives, vmap, batched gradients."""


class CatalogError(GriffinKernelsError, RuntimeError):
    """The catalogue is inconsistent: a duplicate, or a file whose name and contents disagree."""


class RegistryError(GriffinKernelsError, ValueError):
    """A registry file cannot be used; the message says which file, why, and what was used instead."""


class RegistryWarning(UserWarning):
    """A registry file or entry was passed over, and another source or the default kernel is used in its place."""


class StaleWarning(RegistryWarning):
    """An entry was measured with another driver, power limit or library; it is used. Shown once per process."""


class PredictedWarning(RegistryWarning):
    """A kernel was chosen by prediction, without running on this device. Shown once per process."""


class MissWarning(UserWarning):
    """Untuned cases cannot be recorded where they should be; nothing else changes. Shown once per file."""


class CeilingsError(GriffinKernelsError, ValueError):
    """A file of measured ceilings cannot be used; the message says which file and why."""


class CeilingsWarning(UserWarning):
    """A file of measured ceilings was passed over."""


class UntunedWarning(UserWarning):
    """No registry entry is near enough to a case; the default kernel is used. Shown once per op."""


class OutputFolderError(GriffinKernelsError, OSError):
    """The folder for results cannot be written; raised before any work is done."""


class JournalError(GriffinKernelsError, ValueError):
    """A journal cannot be read or continued."""


class WorkerError(GriffinKernelsError, RuntimeError):
    """No worker process can be started, made ready or ended."""


class DeviceError(GriffinKernelsError, RuntimeError):
    """The requested device is not there or is not known."""


class UnknownModelError(UnknownNameError):
    """No model preset has that name."""


class UnknownDevice(UnknownNameError, DeviceError):
    """No datasheet of that SKU ships with the package; the message lists the near ones."""


class DatasheetError(GriffinKernelsError, ValueError):
    """A device datasheet cannot be used; the message names the file and the field."""


class ReportError(GriffinKernelsError, ValueError):
    """A report cannot be built from what is in the folder."""


def warn(message: str, category: type[Warning]) -> None:
    """``warnings.warn`` at the line of the user's code that led here, however many layers of torch lie between.

    That is the innermost frame of a user's code; where there is none, as on a thread of autograd's, the outermost one.
    """
    # not the user's: this package, torch, code that torch has made
    inside = [str(Path(__file__).parent) + os.sep, "<eval_with_key>"]
    if (torch := sys.modules.get("torch")) is not None:
        inside.append(str(Path(str(torch.__file__)).parent) + os.sep)
    if (inductor := sys.modules.get("torch._inductor.runtime.cache_dir_utils")) is not None:
        inside.append(inductor.cache_dir() + os.sep)
    frame: FrameType = sys._getframe()
    depth = 1
    while frame.f_code.co_filename.startswith(tuple(inside)) and frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
