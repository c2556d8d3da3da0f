"""K multiply-adds of x, each shifted one step further, accumulated in one float32 buffer.

    y = bias + weight[K-1] x;   y[:, k:] += weight[K-1-k] x[:, :T-k];   y[:, :k] += weight[K-1-k] state[:, -k:]

Works on every device and dtype; the fallback that cannot fail. Each tap reads x and reads and writes y: 3 K streams
instead of 2, and a masked copy of x per tap with segment_pos. Packed sequences are copied apart first. A residual
is added to the wide sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from griffin_kernels.contract import Case, NoConfig, Variant, accumulator
from griffin_kernels.ops import _activation
from griffin_kernels.ops.temporal_conv1d._conv_packed import places, spread
from griffin_kernels.ops.temporal_conv1d.cost import activation_flops
from griffin_kernels.ops.temporal_conv1d.op import Call, new_state


def masked(earlier: Tensor, segment_pos: Tensor | None, k: int, start: int) -> Tensor:
    """What tap k reads at steps from ``start`` on, zero where that belongs to another document."""
    if segment_pos is None:
        return earlier
    positions = segment_pos[:, start : start + earlier.shape[1]]
    return earlier.masked_fill((positions < k)[..., None], 0.0)


def run(call: Call, config: NoConfig) -> tuple[Tensor, Tensor]:
    after = new_state(call.x, call.state, call.segment_pos, call.cu_seqlens, call.weight.shape[0])
    dtype, residual = call.x.dtype, call.residual
    if residual is None:
        return sums(call, lambda z: _activation.apply(call.activation, z).to(dtype)), after
    return (sums(call, lambda z: _activation.apply(call.activation, z)) + residual).to(dtype), after


def sums(call: Call, made: Callable[[Tensor], Tensor] = lambda z: z) -> Tensor:
    """[B,T,D]: what ``made`` makes of the wide sums of a call, packed or not."""
    x, weight, bias, state, segment_pos, cu_seqlens, *_ = call
    if cu_seqlens is None:
        return made(shifted(x, weight, bias, state, segment_pos))
    where = places(cu_seqlens, x.shape[1], weight.shape[0])
    positions = None if segment_pos is None else spread(segment_pos, None, where)
    return made(shifted(spread(x, state, where), weight, bias, None, positions))[:, where.steps]


def shifted(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, segment_pos: Tensor | None) -> Tensor:
    """The wide sums of sequences that are not packed."""
    wide = accumulator(x.dtype)
    time, taps = x.shape[1], weight.shape[0]
    inputs, w = x.to(wide), weight.to(wide)
    before = None if state is None else state.to(wide)
    y = inputs * w[-1] if bias is None else torch.addcmul(bias.to(wide), inputs, w[-1])
    y = y.contiguous()  # [B, T, D]
    for k in range(1, taps):
        inside = min(k, time)  # steps whose tap k lies before x
        if k < time:
            y[:, k:].addcmul_(masked(inputs[:, : time - k], segment_pos, k, k), w[taps - 1 - k])
        if before is not None:
            rows = before[:, taps - 1 - k : taps - 1 - k + inside]
            y[:, :inside].addcmul_(masked(rows, segment_pos, k, 0), w[taps - 1 - k])
    return y


def traffic(case: Case, config: NoConfig, per_tap: int = 3, tensors: int = 2) -> int:
    """Bytes moved: three streams per tap, two more to mask one, and two to widen and round the halves.

    Packed sequences are copied apart and y back together, in the data's dtype. The gradient has seven streams per tap,
    and three tensors where there are x and y here. An activation has two streams; what its gradient does again is not
    counted.
    """
    elements = case["B"] * case["T"] * case["D"]
    streams = per_tap * case["K"] - 1 + (2 * (case["K"] - 1) if "segmented" in case.flags else 0)
    streams += 2 if activation_flops(case) else 0
    streams += 3 if "residual" in case.flags else 0
    each = 8 if case.dtype == "float64" else 4
    packing = 2 * tensors * case.bytes_per_element() if "packed" in case.flags else 0
    return elements * (streams * each + packing + (tensors * (2 + 4) if case.half else 0))


VARIANT = Variant(
    op="temporal_conv1d",
    name="eager.shifted",
    summary="one shifted multiply-add per tap",
    run=run,
    rank=lambda case, device: 10,
    traffic=traffic,
)
