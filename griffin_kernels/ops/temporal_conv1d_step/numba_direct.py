"""One pass in native CPU code: every kept input is read once, counted, and moved a row up.

    y = bias + weight[K-1] x + sum_k weight[k] state[k];   state[k-1] = state[k];   state[K-2] = x

A thread takes ``block_d`` channels of a batch row. Sums are float32 in a register; bfloat16 and float16 are widened
when read, and rounded once. Nothing is allocated but y. Bound by the call where the batch is small, by memory where it
is not.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels.contract import Case, Variant
from griffin_kernels.device import Device
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._cpu import unfit_cpu
from griffin_kernels.ops._native_call import rows
from griffin_kernels.ops.temporal_conv1d_step import _conv_step_numba
from griffin_kernels.ops.temporal_conv1d_step.op import Call


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item."""

    block_d: int = 2560


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    x, weight, bias, state, positions, slots = call
    batch, width = x.shape
    taps, size = weight.shape[0], x.element_size()
    x, weight, bias = rows(x), rows(weight), rows(bias)
    positions = None if positions is None else positions.contiguous()
    slots = None if slots is None else slots.contiguous()
    kept = rows(state)  # a copy only where channels are not contiguous
    y = torch.empty(batch, width, dtype=x.dtype, device="cpu")
    parts = -(-width // config.block_d)
    state_at, slot_step, row_step = strided("state", kept, size * state.shape[0] * (taps - 1) * width)
    weight_at, tap_step, _ = strided("weight", weight, size * taps * width)
    x_at, x_step, _ = strided("x", x, size * batch * width)
    # in the order of _conv_step_numba.FIELDS
    values = (
        0,
        batch * parts,
        parts,
        config.block_d,
        width,
        taps,
        address("positions", positions, 8 * batch),
        address("slots", slots, 8 * batch),
        x_at,
        x_step * size,
        weight_at,
        tap_step * size,
        address("bias", bias, size * width),
        state_at,
        slot_step * size,
        row_step * size,
        address("y", y, size * batch * width),
    )
    fields = array("q", values)
    threads = _threads.threads_for(batch * parts, batch * width * taps)
    _threads.run(_conv_step_numba.compiled(x.dtype), fields.buffer_info()[0], threads)
    if kept is not state:
        state.copy_(kept)
    return y, state


def reject(case: Case, device: Device, config: Config) -> str | None:
    """Shared with the other native one-token kernels, but for block_d."""
    return unfit_cpu(case, device, config, float64=False)


def rank(case: Case, device: Device) -> int:
    """Above every eager variant."""
    return 20


VARIANT = Variant(
    op="temporal_conv1d_step",
    name="numba.direct",
    summary="one pass in native code over the kept inputs",
    run=run,
    config=Config,
    axes={"block_d": (128, 640, 2560)},
    reject=reject,
    rank=rank,
)
