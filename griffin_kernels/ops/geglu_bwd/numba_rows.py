"""gated_gelu_bwd/numba_rows.py on the halves: both gradients are written where they belong in one tensor."""

from __future__ import annotations

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import _gelu_numba_call
from griffin_kernels.ops.gated_gelu.numba_rows import Config
from griffin_kernels.ops.geglu import numba_rows as forward
from griffin_kernels.ops.geglu.op import halves
from griffin_kernels.ops.geglu_bwd.op import Call


def run(call: Call, config: Config) -> tuple[Tensor]:
    dx = memory.empty(call.x.shape, call.x.dtype)
    _gelu_numba_call.backward(config, *halves(call.x), call.dout, *halves(dx))
    return (dx,)


VARIANT = backward_of(forward.VARIANT, run)
