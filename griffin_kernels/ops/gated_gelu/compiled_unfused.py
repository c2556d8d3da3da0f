"""torch.compile of the published code: one generated kernel that keeps gelu in registers.

What a user gets who compiles a model. Compiled once for each dtype and layout, sizes left open.
"""

from __future__ import annotations

import torch
from torch import Tensor

from griffin_kernels.contract import NoConfig, Variant
from griffin_kernels.ops import _compiled
from griffin_kernels.ops.gated_gelu.op import Call, reference


def layout_of(*tensors: Tensor) -> tuple[object, ...]:
    """What tells calls apart that torch compiles one by one though sizes are left open: sizes of 1, and gaps."""
    return tuple((t.dtype, t.device, tuple(size == 1 for size in t.shape), t.stride(-1)) for t in tensors)


def run(call: Call, config: NoConfig) -> tuple[Tensor]:
    with torch.no_grad():
        (out,) = _compiled.compiled(reference, layout_of(*call), dynamic=True)(call)
    return (out,)


VARIANT = Variant(
    op="gated_gelu",
    name="compiled.unfused",
    summary="torch.compile of gelu and a product",
    run=run,
    reject=lambda case, device, config: _compiled.problem(device),  # a CPU needs a C++ compiler
    baseline=True,
)
