"""An op's reference in pieces, so that its temporaries fit a device that holds the call itself.

A float64 reference of a whole call takes several times the memory of its tensors in float64: 26 GiB for rg_lru_bwd at
B 8, T 8192, D 2560, whose tensors in bfloat16 take 1.3. ``Op.splits`` says along which dims the pieces are independent;
an output that has none of them is the sum over the pieces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from griffin_kernels import device as devices
from griffin_kernels import specs
from griffin_kernels.contract import ROWS, Inputs, Op, TensorSpec

WORKSPACE = 6
"""Bytes that a reference has in use at its peak, at most, per byte of the inputs and outputs of its piece in the
reference's dtype, these included; a test measures it for every op."""

SHARE = 0.5
"""Of a device's memory, for one piece at its peak."""

KEPT = 0.125
"""Of a device's memory, for the outputs; larger ones are kept on the host."""


def reference(
    op: Op, inputs: Inputs, dtype: torch.dtype = torch.float64, memory_bytes: int | None = None
) -> tuple[Tensor | None, ...]:
    """``op.reference`` on ``inputs`` with every floating tensor in ``dtype``, in as many pieces as memory asks for.

    memory_bytes: of the device, which is asked where this is None. Outputs are in ``dtype``, on the inputs' device,
    or on the CPU where they take more than a share of its memory. Not differentiable where it comes in pieces.
    """
    where = next((v.device for v in inputs.values() if isinstance(v, Tensor)), torch.device("cpu"))
    if memory_bytes is None:  # torch's meta device has none of its own
        memory_bytes = devices.detect(where).memory_bytes if where.type in ("cpu", "cuda") else 0
    _, results = _bytes(op, inputs, dtype)
    kept = torch.device("cpu") if where.type == "cuda" and results > KEPT * memory_bytes else where
    places = cuts(op, inputs, parts(op, inputs, dtype, memory_bytes))
    if places == [{}]:
        return tuple(None if out is None else out.to(kept) for out in op.reference(op.call(**in_dtype(dtype, inputs))))
    sizes = sizes_of(op, inputs)
    found: list[Tensor | None] = [None] * len(op.outputs)
    with torch.no_grad():
        for place in places:
            outputs = op.reference(op.call(**in_dtype(dtype, piece(op, inputs, place))))
            for index, (spec, out) in enumerate(zip(op.outputs.values(), outputs, strict=True)):
                if out is None:
                    continue
                if (joined := found[index]) is None:
                    shape = [sizes[d] if d in place else size for d, size in zip(spec.names, out.shape, strict=True)]
                    found[index] = joined = torch.zeros(shape, dtype=out.dtype, device=kept)
                joined[_at(spec, place)].add_(out.to(kept))  # a sum where pieces share a place
            del outputs, out
    return tuple(found)


def parts(op: Op, inputs: Inputs, dtype: torch.dtype, memory: int) -> int:
    """In how many pieces a call should come on a device of ``memory`` bytes; 1 where it has none of its own."""
    return math.ceil(sum(_bytes(op, inputs, dtype)) * WORKSPACE / (SHARE * memory)) if memory else 1


def cuts(op: Op, inputs: Inputs, wanted: int) -> list[Mapping[str, slice]]:
    """Where to cut a call into ``wanted`` pieces, or as many as there can be: slices by the name of a dim.

    The first of ``Op.splits`` is used up before the next one is begun; ``[{}]`` where nothing is to be cut.
    """
    sizes = sizes_of(op, inputs)
    axes: list[list[dict[str, slice]]] = []
    for dims in op.splits:
        if dims == ROWS and any(inputs.get(name) is not None for name in ("cu_seqlens", "slots", "block_table")):
            continue  # which rows of the states belong to which of the batch is in these tensors
        counted = [dim for dim in specs.cut_dims(dims, sizes) if dim in sizes]
        count = min(wanted, sizes[counted[0]]) if counted else 0
        if count > 1:
            first = sizes[counted[0]]
            ratios = {dim: sizes[dim] // first for dim in counted}  # those that are cut together are multiples of it
            ends = itertools.pairwise(index * first // count for index in range(count + 1))
            axes.append([{dim: slice(low * n, high * n) for dim, n in ratios.items()} for low, high in ends])
            wanted = -(-wanted // count)
    return [{name: at for axis in choice for name, at in axis.items()} for choice in itertools.product(*axes)]


def piece(op: Op, inputs: Inputs, place: Mapping[str, slice]) -> Inputs:
    """The part of a call's inputs at ``place``: views."""
    return inputs | {name: value[_at(spec, place)] for name, spec, value in _tensors(op, inputs)}


def _at(spec: TensorSpec, place: Mapping[str, slice]) -> tuple[slice, ...]:
    return tuple(place.get(dim, slice(None)) for dim in spec.names)


def in_dtype(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    """The same arguments with every floating tensor in ``dtype``."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def sizes_of(op: Op, inputs: Inputs) -> dict[str, int]:
    """Sizes of a call's dims by name, as its tensors have them; N and P are B's where no tensor has them."""
    sizes: dict[str, int] = {}
    for _, spec, value in _tensors(op, inputs):
        for dim, size in zip(spec.names, value.shape, strict=True):
            if dim.isidentifier():
                sizes.setdefault(dim, size)
    packed = inputs.get("cu_seqlens")
    sizes.setdefault("N", sizes.get("B", 1) if packed is None else len(packed) - 1)
    return sizes


def _bytes(op: Op, inputs: Inputs, dtype: torch.dtype) -> tuple[int, int]:
    """(of the inputs, of the outputs at most), floating tensors in ``dtype``."""
    sizes = sizes_of(op, inputs)
    given = sum(v.numel() * (dtype if v.is_floating_point() else v.dtype).itemsize for _, _, v in _tensors(op, inputs))
    shapes = ([specs.size_of(dim, sizes) or 0 for dim in spec.names] for spec in op.outputs.values())
    return given, sum(map(math.prod, shapes)) * dtype.itemsize


def _tensors(op: Op, inputs: Inputs) -> Iterator[tuple[str, TensorSpec, Tensor]]:
    for name, spec in op.inputs.items():
        if isinstance(value := inputs.get(name), Tensor):
            yield name, spec, value
