"""Calls the compiled kernels of _norm_numba.py: outputs, addresses, threads. Shared by both ops.

Strides of batch and time may be anything; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import memory
from griffin_kernels.contract import accumulator
from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops._native import WIDE
from griffin_kernels.ops.rms_norm import _norm_numba
from griffin_kernels.ops.rms_norm.op import Call
from griffin_kernels.ops.rms_norm_bwd.op import Call as BackwardCall

_KERNELS = native.Family(_norm_numba.Fields, _norm_numba.FILES)


@functools.lru_cache(maxsize=64)
def _bits(value: float) -> int:
    """A float64's bits as an integer."""
    return int(struct.unpack("q", struct.pack("d", value))[0])


def _run(kernel: Any, call: Any, config: Any, x: Tensor, out: Tensor, **own: Tensor | None) -> None:
    """Run a kernel. x: with contiguous channels. out: y, or dx. own: residual and s; dy, ds and sums."""
    weight = native.rows(call.weight)
    batch, time, width = x.shape
    total, size, piece = batch * time, x.nbytes, config.block_t
    items = -(-total // piece)
    sums = own.get("sums")
    fields = _KERNELS.fields(
        x=strided("x", x, size),
        residual=strided("residual", own.get("residual"), size),
        dy=strided("dy", own.get("dy"), size),
        ds=strided("ds", own.get("ds"), size),
        items=items,
        piece=piece,
        rows=total,
        time=time,
        width=width,
        stream=size >= native.STREAMED and native.in_lines(width, out),
        weight=address("weight", weight, width * weight.itemsize),
        eps=_bits(call.eps),
        offset=_bits(call.weight_offset),
        out=address("output", out, size),
        s=address("s", own.get("s"), size),
        sums=address("sums", sums, 0 if sums is None else items * width * sums.itemsize),
    )
    threads = _threads.threads_for(items, total * width)
    _KERNELS.run(x.dtype, None if weight.dtype == x.dtype else WIDE, fields, (kernel, threads))


def forward(call: Call, config: Any) -> tuple[Tensor, Tensor | None]:
    """rms_norm in pieces of rows."""
    x = native.rows(call.x)
    y = memory.empty(x.shape, x.dtype)
    if call.residual is None:
        _run(_norm_numba.forward, call, config, x, y)
        return y, None
    s = memory.empty(x.shape, x.dtype)
    _run(_norm_numba.forward_added, call, config, x, y, residual=native.rows(call.residual), s=s)
    return y, s


def backward(call: BackwardCall, config: Any) -> tuple[Tensor, Tensor]:
    """rms_norm_bwd, likewise; every piece has sums of its own, which are added in order."""
    x = native.rows(call.x)
    dx = memory.empty(x.shape, x.dtype)
    pieces = -(-x.shape[0] * x.shape[1] // config.block_t)
    sums = torch.zeros((pieces, x.shape[2]), dtype=accumulator(x.dtype), device="cpu")
    ds = None if call.ds is None else native.rows(call.ds)
    _run(_norm_numba.backward, call, config, x, dx, dy=native.rows(call.dy), ds=ds, sums=sums)
    return dx, sums.sum(0).to(call.weight.dtype)
