"""A case as tensors without memory, so that a case larger than this machine can be compiled."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from griffin_kernels.contract import BenchCase, Case, Op
from griffin_kernels.specs import size_of

_SHORT = 16


def meta_call(op: Op, case: Case) -> Any:
    """The call of ``case`` on torch's meta device.

    A bench case is contiguous, with the shapes that the op's specs give: a real twin of it, short in time, tells which
    tensors are there, their dtypes, and the plain options. Other cases are small, and keep their strides.
    """
    short = not isinstance(case, BenchCase) or case.tag == "bench"
    dims = {name: min(size, _SHORT) if short and name in ("T", "S") else size for name, size in case.dims.items()}
    inputs = op.make_inputs(msgspec.structs.replace(case, dims=dims), torch.device("cpu"), 0)
    for name, spec in op.inputs.items():
        value = inputs[name]
        if not isinstance(value, Tensor):
            continue
        if not short:
            inputs[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            continue
        sizes = [size_of(dim, case.dims) for dim in spec.names]
        # a dim that the case does not name keeps the twin's size
        shape = [have if want is None else want for want, have in zip(sizes, value.shape, strict=True)]
        inputs[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    return op.call(**inputs)
