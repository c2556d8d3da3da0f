"""gated_gelu_bwd/triton_rows.py on the halves: both gradients are written where they belong in one tensor."""

from __future__ import annotations

from typing import Any

from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu.triton_rows import Config
from griffin_kernels.ops.gated_gelu_bwd import triton_rows as apart
from griffin_kernels.ops.geglu import triton_rows as forward
from griffin_kernels.ops.geglu.op import halves
from griffin_kernels.ops.geglu_bwd.op import Call
from griffin_kernels.ops.geglu_bwd.op import halves as apart_call


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """The only launch; allocates dx."""
    dx = host.empty(outputs, "dx", call.x, *call.x.shape, dtype=call.x.dtype)
    dgate, dvalue = halves(dx)
    return apart.launches(apart_call(call), {"dgate": dgate, "dvalue": dvalue}, config)


VARIANT = backward_of(forward.VARIANT, launches=launches)
