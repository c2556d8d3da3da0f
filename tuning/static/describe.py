"""What stands for a GPU that is not there, a case that needs no memory, and machine code that is not compiled yet."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import BenchCase, Case, Op
from griffin_kernels.datasheet import Datasheet
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.specs import size_of
from tuning.static.targets import target


def meta_call(op: Op, case: Case) -> Any:
    """The call of ``case`` on torch's meta device.

    A bench case is contiguous, with the shapes that the op's specs give: a real twin of it, short in time, tells which
    tensors are there, their dtypes, and the plain options. Other cases are small, and keep their strides.
    """
    short = not isinstance(case, BenchCase) or case.tag == "bench"
    dims = {name: min(size, 16) if short and name in ("T", "S") else size for name, size in case.dims.items()}
    inputs = op.make_inputs(msgspec.structs.replace(case, dims=dims), torch.device("cpu"), 0)
    for name, spec in op.inputs.items():
        value = inputs.get(name)
        if not isinstance(value, Tensor):
            continue
        if not short:
            inputs[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            continue
        shape = [_size(dim, have, case) for dim, have in zip(spec.names, value.shape, strict=True)]
        inputs[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    return op.call(**inputs)


def _size(dim: str, of_twin: int, case: Case) -> int:
    """A dim's size in a case; one that the case does not name has its twin's, but follows rows and steps."""
    if of_twin > 1:
        dim = {"Ba": "B", "Ta": "T"}.get(dim, dim)
    size = size_of(dim, case.dims)
    return of_twin if size is None else size


def device_of(sheet: Datasheet) -> Device:
    """The Device of a GPU that is not there: what the driver would report, as far as the datasheet knows.

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


def compile_key(launch: Launch) -> str:
    """Equal where Triton compiles one kernel for all: dtypes, compile-time values, what it specialises numbers for."""

    def kind(value: Any) -> str:
        if isinstance(value, Tensor):
            # Triton asks whether base addresses are multiples of 16 bytes; these count as aligned
            return str(value.dtype)
        if isinstance(value, bool) or value is None:
            return str(value)
        if isinstance(value, int):
            return "1" if value == 1 else f"i{32 if -(2**31) <= value < 2**31 else 64}{'d' * (value % 16 == 0)}"
        if isinstance(value, tuple):
            return f"{type(value).__name__}({','.join(map(kind, value))})"
        return str(value) if type(value).__name__ == "constexpr" else type(value).__name__

    constant = {name for name, wanted in launch.kernel.fn.__annotations__.items() if "constexpr" in str(wanted)}
    args = ",".join(f"{name}:{kind(value)}" for name, value in launch.args.items())
    fixed = ",".join(
        f"{name}={value}" if name in constant or type(value).__name__ == "constexpr" else f"{name}:{kind(value)}"
        for name, value in launch.constexprs.items()
    )
    return f"{launch.name}({args})[{fixed}]x{launch.num_warps}s{launch.num_stages}"
