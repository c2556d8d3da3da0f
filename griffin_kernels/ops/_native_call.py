"""Calls kernels of _native.py: their integers by name, threads, and the layouts of tensors that they read."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from griffin_kernels.ops import _native, _threads
from griffin_kernels.ops._native import CACHE_LINE

STREAMED = 16 * 2**20
"""Bytes of outputs from which they are written past the caches: little of them would be left there for a reader."""


class Family:
    """Kernels that are made from the same files and given the same fields, which are as ``_native.places`` has them.

    fields: keywords to the integers in memory, the counter first. Made as NamedTuples make their ``__new__``: one call
    takes half the time of a NamedTuple that is flattened afterwards.
    """

    def __init__(self, fields: type[tuple[Any, ...]], files: tuple[str, ...]) -> None:
        sizes = {name: _native.breadth(kind) for name, kind in get_type_hints(fields).items()}
        pack = struct.Struct(f"{1 + sum(size or 1 for size in sizes.values())}q").pack
        flat = ", ".join(f"*{name}" if size else name for name, size in sizes.items())
        source = f"lambda *, {', '.join(sizes)}: array('q', pack(0, {flat}))"
        self.fields: Callable[..., array[int]] = eval(source, {"array": array, "pack": pack})
        self._files = files

    def run(self, dtype: torch.dtype, number: int | None, fields: array[int], *phases: tuple[Any, int]) -> None:
        """Run kernels one after the other on the same fields. phases: kernels, and threads for each.

        dtype, number: as in ``_native.compiled``.
        """
        at, _ = fields.buffer_info()
        for kernel, threads in phases:
            fields[0] = 0
            _threads.run(_native.compiled(kernel, dtype, self._files, number), at, threads)


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, with contiguous channels."""
    # what is asked first is quickest, and true of most tensors
    if (tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] == 1) and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def target(given: Tensor | None, like: Tensor) -> Tensor:
    """What a kernel writes a token's output like [B, D] into: the tensor given, or a new one.

    A new one too where the channels of what is given are not contiguous; ``delivered`` then copies it.
    """
    if given is not None and (given.stride(-1) == 1 or given.shape[-1] == 1) and not given.is_neg():
        return given
    return like.new_empty(like.shape)


def delivered(written: Tensor, given: Tensor | None) -> Tensor:
    """The output of a call: the tensor given for it, or what was written."""
    return written if given is None or given is written else given.copy_(written)


def wide(state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A state [N, D] contiguous in the accumulator's dtype."""
    return None if state is None else state.to(dtype).resolve_neg().contiguous()


def in_lines(block: int, *outputs: Tensor) -> bool:
    """Whether every vector of outputs [B,T,D] in blocks of ``block`` channels fills a cache line."""
    row, piece = outputs[0].shape[2] * outputs[0].itemsize, block * outputs[0].itemsize
    return (
        row % CACHE_LINE == 0 and piece % CACHE_LINE == 0 and all(out.data_ptr() % CACHE_LINE == 0 for out in outputs)
    )
