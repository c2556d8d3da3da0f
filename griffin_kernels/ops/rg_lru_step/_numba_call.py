"""Calls the compiled code of _numba.py: addresses, scratch, threads. Shared by rg_lru_step and recurrent_block_step.

Rows of x, y and the states may lie anywhere; a tensor whose channels are not contiguous is copied first, and a state
copied back.
"""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from griffin_kernels.ops import _threads
from griffin_kernels.ops._buffers import address, strided
from griffin_kernels.ops.rg_lru import _numba_call as sequence
from griffin_kernels.ops.rg_lru_step import _numba

_ROWS_PER_READ = 4
"""Batch rows whose products take as long as reading the weights."""


def plain(tensor: Tensor) -> Tensor:
    """Contiguous, itself if it is: a call that copies nothing must not cost more than its kernel."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else sequence.plain(tensor)


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else sequence.rows(tensor)


def run(
    x: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    h: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
    part: int,
    y: Tensor | None = None,
    conv: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """One token: [B, D] in x's dtype. ``h`` is overwritten.

    gates: the parameters in the op's order. y: the other branch, whose gelu gates the output. conv: weight, bias and
    state of a convolution before the gates; the state is overwritten.
    """
    batch, width = x.shape
    a_param, *gate_tensors = [t if t.is_contiguous() and not t.is_neg() else sequence.plain(t) for t in gates]
    blocks, n = gate_tensors[1].shape
    size = x.element_size()
    x = rows(x)
    y = None if y is None else rows(y)
    state = rows(h)
    part = min(part, n)
    parts = -(-n // part)
    items = blocks * parts
    out = torch.empty(batch, width, dtype=x.dtype, device="cpu")
    threads = _threads.threads_for(items, 2 * n * width * max(1, batch // _ROWS_PER_READ))
    scratch_bytes = -(-4 * _numba.scratch_floats(n, part, batch) // 4096) * 4096
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8, device="cpu")
    finished = torch.zeros(blocks, dtype=torch.int64, device="cpu") if parts > 1 else None
    positions = None if positions is None else positions.contiguous()
    slots = None if slots is None else slots.contiguous()
    conv_values = (0, 0, 0, 0, 0, 0)
    if conv is not None:
        conv_weight, conv_bias, conv_state = plain(conv[0]), plain(conv[1]), conv[2]
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
    if conv is not None and kept is not conv_state:
        conv_state.copy_(kept)
    return out
