"""Convolution, gate products, gates, recurrence and the product with gelu(y) in one native pass.

As rg_lru/numba_fused.py, with what surrounds it:

    u = conv(x)         into the block of steps that the products read
    h = rg_lru(u),  out = h gelu(y)

Only x and y are read and only out is written, 12 bytes per element in float32: u and gelu(y) never leave the caches.
Convolution and gelu are 20 of some 90 vector instructions beside the products, which bind. h is written too where the
backward pass wants it.

Numerics: float32 from x to out; gelu's tanh form is y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3)), the same function.
"""

from __future__ import annotations

from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import Variant
from griffin_kernels.ops.rg_lru import _numba_call
from griffin_kernels.ops.rg_lru.numba_fused import Config, rank, reject
from griffin_kernels.ops.temporal_conv1d.op import new_state


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
    conv_state: Tensor | None,
    h0: Tensor | None,
    segment_pos: Tensor | None,
    cu_seqlens: Tensor | None,
    with_h: bool,
    *,
    config: Config,
) -> tuple[Tensor | None, ...]:
    gates = (a_param, input_gate_weight, input_gate_bias, recurrence_gate_weight, recurrence_gate_bias)
    h = memory.empty(x.shape, x.dtype) if with_h else None
    around = _numba_call.Around(y, conv_weight, conv_bias, conv_state, h)
    out, h_last = _numba_call.forward(
        x, *gates, h0, segment_pos, cu_seqlens, config.block_t, config.block_d, around=around
    )
    return out, new_state(x, conv_state, segment_pos, cu_seqlens, conv_weight.shape[0]), h_last, h


VARIANT = Variant(
    op="recurrent_block",
    name="numba.fused",
    summary="convolution, products, gates, scan and gelu in one pass in native code",
    run=run,
    config=Config,
    axes={"block_t": (24, 48, 96, 192), "block_d": (32, 64, 128, 256)},
    reject=reject,
    rank=rank,
)
