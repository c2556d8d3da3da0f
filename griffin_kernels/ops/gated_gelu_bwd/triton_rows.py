"""The gradients in one launch; see gated_gelu/triton_rows.py.

    dvalue = dout gelu(gate),   dgate = dout value gelu'(gate)

Bytes per element: the ideal five data elements, 10 in bf16. gelu and its slope share one exponential.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from griffin_kernels.launch import Launch
from griffin_kernels.ops._triton import host
from griffin_kernels.ops._triton.activations import FLAT, sigmoid
from griffin_kernels.ops._triton.elementwise import GELU_CUBIC, GELU_SCALE
from griffin_kernels.ops._triton.tensors import at, load_rows, own_channels, store_row
from griffin_kernels.ops._variants import backward_of
from griffin_kernels.ops.gated_gelu import _gelu_launches
from griffin_kernels.ops.gated_gelu import triton_rows as forward
from griffin_kernels.ops.gated_gelu_bwd.op import Call


@triton.jit
def gelu_with_slope(z):
    """(gelu, its derivative) at z, finite for every finite z; NaN stays NaN."""
    near = tl.where(z > FLAT, FLAT, tl.where(z < -FLAT, -FLAT, z))
    square = near * near
    share = sigmoid(near * (2.0 * GELU_SCALE + 2.0 * GELU_CUBIC * GELU_SCALE * square))
    steepness = near * (2.0 * GELU_SCALE + 6.0 * GELU_CUBIC * GELU_SCALE * square)
    return z * share, share + share * (1.0 - share) * steepness


@triton.jit
def gradient_tile(
    inputs, outputs, batch, time, channels, left, ACC: tl.constexpr, BLOCK_T: tl.constexpr, TAIL: tl.constexpr
):
    """The BLOCK_T steps from ``time`` on, ``left`` of them in the tail."""
    douts = load_rows(at(inputs[0], batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    gates = load_rows(at(inputs[1], batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    values = load_rows(at(inputs[2], batch, time, 1), channels, left, 0.0, BLOCK_T, TAIL)
    for u in tl.static_range(BLOCK_T):
        made, slope = gelu_with_slope(gates[u].to(ACC))
        dout = douts[u].to(ACC)
        store_row(at(outputs[0], batch, time, 1), u, dout * values[u].to(ACC) * slope, channels, left, TAIL)
        store_row(at(outputs[1], batch, time, 1), u, dout * made, channels, left, TAIL)


@triton.jit(do_not_specialize=["T"])
def gated_gelu_bwd_rows(
    dout, gate, value, dgate, dvalue, T,
    ACC: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All [B,T,D]. Grid: B * ceil(T / block_t) * ceil(D / block_d), channels fastest."""
    place, channels = own_channels(tl.program_id(0), D, BLOCK_D)
    parts = (T + BLOCK_T - 1) // BLOCK_T
    batch = tl.cast(place // parts, tl.int64)
    time = tl.cast(place % parts, tl.int64) * BLOCK_T
    left = T - time
    if left >= BLOCK_T:
        gradient_tile((dout, gate, value), (dgate, dvalue), batch, time, channels, left, ACC, BLOCK_T, False)
    else:
        gradient_tile((dout, gate, value), (dgate, dvalue), batch, time, channels, left, ACC, BLOCK_T, True)


def launches(call: Call, outputs: dict[str, Any], config: forward.Config) -> list[Launch]:
    """The only launch; allocates both gradients."""
    made = {
        name: host.empty(outputs, name, call.gate, *call.gate.shape, dtype=call.gate.dtype)
        for name in ("dgate", "dvalue")
    }
    return [_gelu_launches.launch(gated_gelu_bwd_rows, call._asdict(), made, config)]


VARIANT = backward_of(forward.VARIANT, launches=launches)
