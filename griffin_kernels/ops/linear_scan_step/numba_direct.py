"""One pass in native CPU code: x, a and the state are read once, the state and y written.

    h = a h + x

A thread takes ``block_d`` channels of a batch row. Everything is float32 in a register; bfloat16 and float16 are
widened when read, and y is rounded once. Nothing is allocated but y, if that is not given. Bound by the call where the
batch is small, by memory where it is not.
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
from griffin_kernels.ops.linear_scan_step import _scan_step_numba
from griffin_kernels.ops.linear_scan_step.op import Call

_KERNELS = Family(_scan_step_numba.Fields, _scan_step_numba.FILES)


@dataclass(frozen=True)
class Config:
    """block_d: channels of one work item."""

    block_d: int = 2560


def run(call: Call, config: Config) -> tuple[Tensor, Tensor]:
    x, a, pool, *indices, log, pad_slot, given = call
    x, a, h = rows(x), rows(a), rows(pool)  # copies only where channels are not contiguous
    reset, slots, dst_slots = [None if index is None else index.contiguous() for index in indices]
    (batch, width), size = x.shape, x.itemsize
    y = target(given, x)
    parts = -(-width // config.block_d)
    fields = _KERNELS.fields(
        x=strided("x", x, size * batch * width),
        a=strided("a", a, a.itemsize * batch * width),
        h=strided("h", h, 4 * h.shape[0] * width),
        y=strided("y", y, size * batch * width),
        items=batch * parts,
        parts=parts,
        part=config.block_d,
        width=width,
        log=log,
        reset=address("reset", reset, batch),
        slots=address("slots", slots, 8 * batch),
        dst_slots=address("dst_slots", dst_slots, 8 * batch),
        pad_slot=pad_slot,
    )
    threads = threads_for(batch * parts, batch * width)
    _KERNELS.run(x.dtype, WIDE if a.dtype != x.dtype else None, fields, (_scan_step_numba.step, threads))
    if h is not pool:
        pool.copy_(h)
    return delivered(y, given), pool


VARIANT = Variant(
    op="linear_scan_step",
    name="numba.direct",
    summary="one pass in native code",
    run=run,
    config=Config,
    axes={"block_d": (128, 640, 2560)},
    reject=lambda case, device, config: unfit_cpu(case, device, config, float64=False),
    rank=lambda case, device: 20,
)
