"""One pass in native CPU code: gate and value are read once, their product is rounded and written once.

    out = gelu(gate) value

A thread takes ``block_t`` steps of ``block_d`` channels, a cache line at a time. Everything is float32 in a register,
or float64 for float64 data. Bound by gelu's exponential where the data is in the caches, else by DRAM. Outputs that no
cache would hold go past the caches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import Variant
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.gated_gelu import _gelu_numba_call
from griffin_kernels.ops.gated_gelu.op import Call


@dataclass(frozen=True)
class Config:
    """block_t, block_d: steps and channels of one work item."""

    block_t: int = 16
    block_d: int = 8192


def run(call: Call, config: Config) -> tuple[Tensor]:
    out = memory.empty(call.gate.shape, call.gate.dtype)
    _gelu_numba_call.forward(config, call.gate, call.value, out)
    return (out,)


VARIANT = Variant(
    op="gated_gelu",
    name="numba.rows",
    summary="one pass in native code",
    run=run,
    config=Config,
    axes={"block_t": (1, 16, 64), "block_d": (1024, 8192)},
    reject=unfit_cpu,
    rank=lambda case, device: 20,
)
