"""One token for a few rows, in place: all weights in flight at once, no tensor cores; the convolution before.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y)

The kernel of rg_lru_step's triton.vector, whose programs share a gate block: the convolution, which moves what is
kept, is a launch of its own (triton.rows), so that none of them reads it half moved. Narrow gate blocks (``block_n`` >=
n) take one launch. See triton.fused for one launch in every case, by fewer programs.

Numerics: products and sums in float32, as gates and state; between two launches u is rounded to the data's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.launch import Launch
from griffin_kernels.ops.recurrent_block_step import _recurrent_step_launches as block
from griffin_kernels.ops.recurrent_block_step.op import Call
from griffin_kernels.ops.rg_lru_step import _lru_step_launches as lru


@dataclass(frozen=True)
class Config(lru.Vector):
    __doc__ = lru.Vector.__doc__


def launches(call: Call, outputs: dict[str, Any], config: Config) -> list[Launch]:
    """The convolution, then the gates; one launch where a program owns a gate block."""
    return block.steps(lru.vector_launch, call, outputs, config)


def reject(case: Case, device: Device, config: Config) -> str | None:
    return lru.vector_unfit(case, device, config)


def rank(case: Case, device: Device) -> int:
    """The default for a few rows."""
    return 25


VARIANT = Variant(
    op="recurrent_block_step",
    name="triton.vector",
    summary="for a few rows: the convolution, then gates with all weights in flight at once",
    config=Config,
    axes=lru.VECTOR_AXES,
    reject=reject,
    rank=rank,
    launches=launches,
)
