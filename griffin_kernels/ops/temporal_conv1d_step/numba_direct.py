"""One pass in native CPU code: every kept input is read once, counted, and moved a row up.

    y = bias + weight[K-1] x + sum_k weight[k] state[k];   state[k-1] = state[k];   state[K-2] = x

A thread takes ``block_d`` channels of a batch row. Sums are float32 in a register; bfloat16 and float16 are widened
when read, and rounded once. Nothing is allocated but y, if that is not given. Bound by the call where the batch is
small, by memory where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from griffin_kernels.contract import Variant
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops._native import WIDE
from griffin_kernels.ops._native_call import Family, delivered, rows, target
from griffin_kernels.ops._threads import threads_for
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba
from griffin_kernels.ops.temporal_conv1d_step.op import Call

_KERNELS = Family(_conv_step_numba.Fields, _conv_step_numba.FILES)


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item."""

    block_d: int = 2560


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    x, weight, bias, pool, positions, slots, dst_slots, pad_slot, activation, given = call
    dtype = x.dtype
    wide = None if weight.dtype is dtype and (bias is None or bias.dtype is dtype) else WIDE
    if wide:
        weight, bias = weight.float(), None if bias is None else bias.float()
    x, weight, bias = rows(x), rows(weight), None if bias is None else rows(bias)
    state = rows(pool)  # a copy only where channels are not contiguous
    positions = None if positions is None else positions.contiguous()
    slots = None if slots is None else slots.contiguous()
    dst_slots = None if dst_slots is None else dst_slots.contiguous()
    (batch, width), taps, size, own = x.shape, weight.shape[0], x.itemsize, weight.itemsize
    y = target(given, x)
    parts = -(-width // config.block_d)
    fields = _KERNELS.fields(
        x=strided("x", x, size * batch * width),
        weight=strided("weight", weight, own * taps * width),
        state=strided("state", state, size * state.shape[0] * (taps - 1) * width),
        items=batch * parts,
        parts=parts,
        part=config.block_d,
        width=width,
        taps=taps,
        positions=address("positions", positions, 8 * batch),
        slots=address("slots", slots, 8 * batch),
        dst_slots=address("dst_slots", dst_slots, 8 * batch),
        pad_slot=pad_slot,
        bias=address("bias", bias, own * width),
        y=address("y", y, size * batch * width),
        y_step=width if given is None else y.stride(0),
    )
    threads = threads_for(batch * parts, batch * width * taps)
    _KERNELS.run(dtype, wide, fields, (_conv_step_numba.STEP[activation], threads))
    if state is not pool:
        pool.copy_(state)
    return delivered(y, given), pool


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="numba.direct",
    summary="one pass in native code over the kept inputs",
    run=run,
    config=Config,
    axes={"block_d": (128, 640, 2560)},
    reject=lambda case, device, config: unfit_cpu(case, device, config, float64=False),
    rank=lambda case, device: 20,
)
