"""What the compiled variants share: whether torch.compile can work here, and one compiled function per kind of call."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import poison
from griffin_kernels.device import Device


@functools.cache
def _cpu_problem() -> str | None:
    if sys.platform == "win32":
        return None  # inductor looks for MSVC itself
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler on a CPU: {compiler} is not installed (CXX names another)"
    if subprocess.run([compiler, "--version"], capture_output=True, check=False).returncode != 0:
        return f"torch.compile needs a C++ compiler on a CPU: {compiler} --version fails"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"torch.compile needs Python's headers on a CPU: {header} is not there"
    return None


def problem(device: Device) -> str | None:
    """Why torch.compile cannot make kernels for the device, or None."""
    if device.kind == "interpreter":
        return "torch.compile does not run Triton's interpreter"
    return _cpu_problem() if device.kind == "cpu" else None


def kind_of(*tensors: Tensor | None) -> tuple[object, ...]:
    """What tells calls apart that torch compiles one by one: shapes, dtypes, devices, what is not given."""
    return tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)


@functools.lru_cache(maxsize=256)
def compiled(function: Callable[..., Any], key: object, dynamic: bool) -> Callable[..., Any]:
    """``torch.compile(function)`` for one kind of call; compiled at its first call, once per process.

    torch counts recompilations per code object and past its limit runs a function uncompiled, or raises with
    ``fullgraph``, as here. Calls of another ``key`` get a copy of the code, and with it a count of their own. Poisoned
    memory ends where it begins.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_compiled")
    copy = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    made = torch.compile(copy, fullgraph=True, dynamic=dynamic)

    def call(*arguments: Any) -> Any:
        with poison.outside():
            return made(*arguments)

    return call
