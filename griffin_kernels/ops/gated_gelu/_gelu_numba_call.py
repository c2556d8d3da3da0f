"""Calls the compiled kernels of _gelu_numba.py: addresses, threads. Shared by both ops and their packed forms.

Strides of time and batch may be anything; a tensor whose channels are not contiguous is copied first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from griffin_kernels.ops import _native_call as native
from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import strided
from griffin_kernels.ops.gated_gelu import _gelu_numba

_KERNELS = native.Family(_gelu_numba.Fields, _gelu_numba.FILES)


def _run(kernel: Any, config: Any, gate: Tensor, value: Tensor, dout: Tensor | None, *outputs: Tensor) -> None:
    """Run a kernel. outputs: out, or dgate and dvalue, contiguous channels."""
    gate, value = native.rows(gate), native.rows(value)
    dout = None if dout is None else native.rows(dout)
    (batch, time, width), size = gate.shape, gate.nbytes
    chunk, block = config.block_t, config.block_d
    chunks, blocks = -(-time // chunk), -(-width // block)
    items = batch * chunks * blocks
    fields = _KERNELS.fields(
        gate=strided("gate", gate, size),
        value=strided("value", value, size),
        dout=strided("dout", dout, size),
        out=strided("output", outputs[0], size),
        dvalue=strided("dvalue", outputs[1] if outputs[1:] else None, size),
        items=items,
        chunks=chunks,
        chunk=chunk,
        blocks=blocks,
        block=block,
        width=width,
        time=time,
        stream=size >= native.STREAMED and native.in_lines(block, *outputs),
    )
    _KERNELS.run(gate.dtype, None, fields, (kernel, _threads.threads_for(items, batch * time * width)))


def forward(config: Any, gate: Tensor, value: Tensor, out: Tensor) -> None:
    """Write gelu(gate) value."""
    _run(_gelu_numba.forward, config, gate, value, None, out)


def backward(config: Any, gate: Tensor, value: Tensor, dout: Tensor, dgate: Tensor, dvalue: Tensor) -> None:
    """Write the gradients of gate and value."""
    _run(_gelu_numba.backward, config, gate, value, dout, dgate, dvalue)
