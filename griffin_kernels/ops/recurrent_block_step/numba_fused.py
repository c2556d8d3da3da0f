"""One token between a block's linear layers in native CPU code: convolution, gates, state and gelu in one pass.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y)

The code of rg_lru_step's numba.fused, whose docstring says how the products are done; a gate block's inputs come out of
the convolution instead of memory, as float32, and the kept inputs move while they are in the first-level cache. Where a
block is shared by several threads (``block_d`` below n) each computes all of its inputs, and the one that is last moves
what is kept. gelu's tanh form is y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)): one more exponential and division.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops.rg_lru_step import _numba_call


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item; few where there are many cores."""

    block_d: int = 256


def run(
    x: Tensor,
    y: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    a_param: Tensor,
    input_gate_weight: Tensor,
    input_gate_bias: Tensor,
    recurrence_gate_weight: Tensor,
    recurrence_gate_bias: Tensor,
    conv_state: Tensor,
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
    *,
    config: Config,
) -> tuple[Tensor, Tensor, Tensor]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    conv = (conv_weight, conv_bias, conv_state)
    return _numba_call.run(x, gates, h, positions, slots, config.block_d, y, conv), conv_state, h


def reject(case: Case, device: Device, config: Config) -> str | None:
    return unfit_cpu(case, device, config, float64=False)


def rank(case: Case, device: Device) -> int:
    """Above every eager variant."""
    return 20


VARIANT = Variant(
    op="recurrent_block_step",
    name="numba.fused",
    summary="convolution, gates, state and gelu in one pass in native code",
    run=run,
    config=Config,
    axes={"block_d": (32, 64, 128, 256)},
    reject=reject,
    rank=rank,
)
