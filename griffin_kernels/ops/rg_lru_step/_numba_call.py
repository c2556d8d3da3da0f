"""Calls the compiled code of _numba.py: addresses, scratch, threads. Shared by rg_lru_step and recurrent_block_step.

Rows of x, y and the states may lie anywhere; a tensor whose channels are not contiguous is copied first, and a state
copied back.
"""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.recurrent_block_step.op import Call as BlockCall
from griffin_kernels.ops.rg_lru import _numba_call as sequence
from griffin_kernels.ops.rg_lru.op import gates_of
from griffin_kernels.ops.rg_lru_step import _numba
from griffin_kernels.ops.rg_lru_step.op import Call

_ROWS_PER_READ = 4
"""Batch rows whose products take as long as reading the weights."""


def plain(tensor: Tensor) -> Tensor:
    """Contiguous, itself if it is: a call that copies nothing must not cost more than its kernel."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else sequence.plain(tensor)


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else sequence.rows(tensor)


def recurrence(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    """rg_lru_step."""
    return _run(call, config), call.h


def block(call: BlockCall, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """recurrent_block_step: a convolution before the gates, and the product with gelu(y)."""
    return _run(call, config, call), call.conv_state, call.h


def _run(call: Any, config: Any, around: BlockCall | None = None) -> Tensor:
    """The token's output [B, D] in x's dtype; states are overwritten."""
    batch, width = call.x.shape
    a_param, *gate_tensors = [plain(tensor) for tensor in gates_of(call)]
    blocks, n = gate_tensors[1].shape
    x, h, size = rows(call.x), call.h, call.x.element_size()
    y = None if around is None else rows(around.y)
    state = rows(h)
    part = min(config.block_d, n)
    parts = -(-n // part)
    items = blocks * parts
    out = torch.empty(batch, width, dtype=x.dtype, device="cpu")
    threads = _threads.threads_for(items, 2 * n * width * max(1, batch // _ROWS_PER_READ))
    scratch_bytes = -(-4 * _numba.scratch_floats(n, part, batch) // 4096) * 4096
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device="cpu")
    finished = torch.zeros(blocks, dtype=torch.int64, device="cpu") if parts > 1 else None
    positions = None if call.positions is None else call.positions.contiguous()
    slots = None if call.slots is None else call.slots.contiguous()
    conv_values = (0, 0, 0, 0, 0, 0)
    if around is not None:
        conv_weight, conv_bias, conv_state = plain(around.conv_weight), plain(around.conv_bias), around.conv_state
        kept, taps = rows(conv_state), conv_weight.shape[0]
        kept_at, slot_step, row_step = strided("conv_state", kept, size * h.shape[0] * (taps - 1) * width)
        conv_values = (
            taps,
            address("conv_weight", conv_weight, size * taps * width),
            address("conv_bias", conv_bias, size * width),
            kept_at,
            slot_step * size,
            row_step * size,
        )
    x_at, x_step, _ = strided("x", x, size * batch * width)
    y_at, y_step, _ = strided("y", y, size * batch * width)
    h_at, h_step, _ = strided("h", state, 4 * h.shape[0] * width)
    # in the order of _numba.FIELDS
    values = (
        0,
        0,
        items,
        parts,
        part,
        n,
        batch,
        width,
        address("positions", positions, 8 * batch),
        address("slots", slots, 8 * batch),
        x_at,
        x_step * size,
        y_at,
        y_step * size,
        address("output", out, size * batch * width),
        address("a_param", a_param, size * width),
        *[address("gates", tensor, size * width * (n if tensor.dim() == 3 else 1)) for tensor in gate_tensors],
        h_at,
        h_step * 4,
        *conv_values,
        address("scratch", scratch, threads * scratch_bytes),
        scratch_bytes,
        address("finished", finished, 8 * blocks),
    )
    fields = array("q", values)
    _threads.run(_numba.compiled(x.dtype), fields.buffer_info()[0], threads)
    if state is not h:
        h.copy_(state)
    if around is not None and kept is not conv_state:
        conv_state.copy_(kept)
    return out
