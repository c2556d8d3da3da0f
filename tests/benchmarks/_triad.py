"""The yardstick of a five-stream kernel: p = x + s y, q = y z, on the threads that the scans run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from griffin_kernels.ops import _native_call, _native_rows
from griffin_kernels.ops._native import data_bytes, field, places, take
from griffin_kernels.ops._native_rows import row

_BLOCK = 2**15


class _Fields(NamedTuple):
    x: int
    y: int
    z: int
    p: int
    q: int
    items: int
    n: int


_AT = places(_Fields)


@row()
def _triad_row(v: Any, x: Any, y: Any, z: Any, p: Any, q: Any) -> None:
    gain = v.load(y)
    v.store(v.multiply_add(gain, v.constant(0.5), v.load(x)), p)
    v.store(v.multiply(gain, v.load(z)), q)


def _triad(data: Any) -> None:
    count, step = field(data, _AT.n), _BLOCK * data_bytes(data)
    item = take(data, 0)
    while item < field(data, _AT.items):
        at = item * step
        x, y, z = field(data, _AT.x) + at, field(data, _AT.y) + at, field(data, _AT.z) + at
        p, q = field(data, _AT.p) + at, field(data, _AT.q) + at
        _triad_row(data, 0, min(_BLOCK, count - item * _BLOCK), (x, y, z, p, q))
        item = take(data, 0)


def triad(x: Tensor, y: Tensor, z: Tensor, empty: Callable[..., Tensor] = torch.empty) -> tuple[Tensor, Tensor]:
    """p and q of contiguous x, y, z, in outputs from ``empty(shape, dtype=...)``."""
    p, q = empty(x.shape, dtype=x.dtype), empty(x.shape, dtype=x.dtype)
    fields = _Fields(*(tensor.data_ptr() for tensor in (x, y, z, p, q)), -(-x.numel() // _BLOCK), x.numel())
    family = _native_call.Family(_Fields, (__file__, str(_native_rows.__file__)))
    family.run(x.dtype, None, family.fields(**fields._asdict()), (_triad, torch.get_num_threads()))
    return p, q
