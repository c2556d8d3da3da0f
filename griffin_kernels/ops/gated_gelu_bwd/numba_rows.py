"""The gradients in one pass, in native CPU code; see gated_gelu/numba_rows.py.

    dvalue = dout gelu(gate),   dgate = dout value gelu'(gate)

Five streams: three tensors are read once, two are written once. gelu and its slope share one exponential.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import _gelu_numba_call
from griffin_kernels.ops.gated_gelu import numba_rows as forward
from griffin_kernels.ops.gated_gelu_bwd.op import Call


def run(call: Call, config: forward.Config) -> tuple[Tensor, Tensor]:
    dout, gate, value = call
    dgate, dvalue = memory.empty(gate.shape, gate.dtype), memory.empty(gate.shape, gate.dtype)
    _gelu_numba_call.backward(config, gate, value, dout, dgate, dvalue)
    return dgate, dvalue


VARIANT = backward_of(forward.VARIANT, run)
