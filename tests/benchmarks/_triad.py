"""The yardstick of a five-stream kernel: p = x + s y, q = y z, on the threads that the scans run on."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._native import data_bytes, field, take
from griffin_kernels.ops._native_rows import row
from griffin_kernels.ops.linear_scan import _numba

_BLOCK = 2**15
_X, _Y, _Z, _P, _Q = (_numba.FIELDS.index(name) for name in ("x", "a", "h", "out", "da"))


@row()
def _triad_row(v: Any, x: Any, y: Any, z: Any, p: Any, q: Any) -> None:
    gain = v.load(y)
    v.store(v.multiply_add(gain, v.constant(0.5), v.load(x)), p)
    v.store(v.multiply(gain, v.load(z)), q)


def _triad(data: Any) -> None:
    count, step = field(data, _numba._WIDTH), _BLOCK * data_bytes(data)
    item = take(data, 0)
    while item < field(data, _numba._ITEMS):
        at = item * step
        x, y, z = field(data, _X) + at, field(data, _Y) + at, field(data, _Z) + at
        p, q = field(data, _P) + at, field(data, _Q) + at
        _triad_row(data, 0, min(_BLOCK, count - item * _BLOCK), (x, y, z, p, q))
        item = take(data, 0)


def triad(x: Tensor, y: Tensor, z: Tensor, empty: Callable[..., Tensor] = torch.empty) -> tuple[Tensor, Tensor]:
    """p and q of contiguous x, y, z, in outputs from ``empty(shape, dtype=...)``."""
    p, q = empty(x.shape, dtype=x.dtype), empty(x.shape, dtype=x.dtype)
    fields = array("q", [0] * len(_numba.FIELDS))
    fields[_numba._ITEMS] = -(-x.numel() // _BLOCK)
    fields[_numba._WIDTH] = x.numel()
    for index, tensor in ((_X, x), (_Y, y), (_Z, z), (_P, p), (_Q, q)):
        fields[index] = tensor.data_ptr()
    kernel = _native.compiled(_triad, x.dtype, (__file__, *_numba.FILES))
    _threads.run(kernel, fields.buffer_info()[0], torch.get_num_threads())
    return p, q
