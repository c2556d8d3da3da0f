"""Everything between a block's linear layers for one token, in place: one launch where a program owns a gate block.

    u = bias + sum_k w_k x_{t-k},  z = u W + b,  i, r = sigmoid(z)
    h = a h + sqrt(1 - a^2) i u,   out = h gelu(y)

The kernel of rg_lru_step's triton.fused with the convolution in front: a program reads all n inputs of a gate block
and what is kept of them, and moves that a row up after all its threads have read it. That takes one program per gate
block and ``block_b`` rows. Where ``block_n`` is below n several programs share a block, which puts more of the chip to
reading weights; none of them may then move what others still read, and the convolution is a launch of its own
(triton.rows). Which of the two is faster depends on the launch latency and the number of blocks: the tuner's choice.
One launch moves the ideal bytes, and reads what is kept twice, through the caches.

Numerics: u is rounded to the data's dtype where it is multiplied; in one launch it enters the state as float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from griffin_kernels.ops.recurrent_block_step._recurrent_step_launches import around
from griffin_kernels.ops.rg_lru_step import triton_fused
from griffin_kernels.ops.rg_lru_step._triton_lru_step import Dot


@dataclass(frozen=True)
class Config(Dot):
    __doc__ = Dot.__doc__

    block_n: int = 256
    block_k: int = 32
    num_warps: int = 8


VARIANT = around(
    triton_fused.VARIANT,
    summary="one launch in place where a program owns a gate block, gates by matrix instructions",
    config=Config,
)
