"""temporal_conv1d's numba.direct between the windows that sequences start from, gathered, and those kept, scattered.

y is made in one pass of native code. Windows are K-1 rows for each that is read or kept: few, but where every token's
is. They are copied by PyTorch.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from griffin_kernels.ops import _keep
from griffin_kernels.ops.temporal_conv1d import _conv_numba_call
from griffin_kernels.ops.temporal_conv1d.numba_direct import VARIANT as CONVOLUTION
from griffin_kernels.ops.temporal_conv1d.numba_direct import Config
from griffin_kernels.ops.temporal_conv1d_extend.op import Call, gathered


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    given = gathered(call)
    y = _conv_numba_call.output(given, config)
    assert given.state is not None
    _keep.write_windows(call.states, call, given.state)
    return y, call.states


VARIANT = dataclasses.replace(
    CONVOLUTION,
    op="temporal_conv1d_extend",
    summary="the convolution in one pass in native code, windows copied around it",
    run=run,
)
