"""How the ops run on DTensors: whole, or cut where their calls fall apart into independent ones (``Op.splits``).

Rows of the batch, gate blocks with their channels, key heads with their queries. What is whole on every rank and sums
over what is cut, such as the gradient of a weight over the batch, comes out as a partial sum. Time is never cut: its
shards are gathered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from griffin_kernels.contract import ROWS, Op, TensorSpec
from griffin_kernels.specs import cut_dims, is_absent

Rule = tuple[list[Placement], list[Placement | None]]
"""Placements of the outputs, and of the inputs they come from."""


def _cut(spec: TensorSpec, split: Sequence[str]) -> Shard | None:
    """Where a tensor is cut along a split: at the first of its dims that the tensor has."""
    return next((Shard(spec.names.index(dim)) for dim in split if dim in spec.names), None)


def _rule(op: Op, call: Any, split: Sequence[str]) -> Rule:
    inputs: list[Placement | None] = [
        None if value is None or name not in op.inputs else _cut(op.inputs[name], split) or Replicate()
        for name, value in zip(op.arguments, call, strict=False)  # ``out`` is no argument
    ]
    outputs: list[Placement] = [
        Replicate() if is_absent(name, spec, call) else _cut(spec, split) or Partial()
        for name, spec in op.outputs.items()
        if name not in op.in_place
    ]
    return outputs, inputs


def rules(op: Op, args: Sequence[Any]) -> list[Rule]:
    """What a call may be cut along; ``args`` have a shape and a mesh where they are tensors."""
    call = op.call(*args)
    whole = _rule(op, call, ())
    found: list[Rule] = [([Replicate()] * len(whole[0]), whole[1])]
    ranks = args[0].mesh.size()
    shared = any(
        getattr(call, name, None) is not None for name in ("cu_seqlens", "slots", "block_table")
    )  # rows that index one another
    sizes = {
        dim: size
        for spec, value in zip(op.inputs.values(), call, strict=False)  # options follow the tensors
        if value is not None
        for dim, size in zip(spec.names, value.shape, strict=True)
    }
    for split in op.splits:
        if split[0] in sizes and sizes[split[0]] % ranks == 0 and not (split == ROWS and shared):
            found.append(_rule(op, call, cut_dims(split, sizes)))
    return found


def register(op: Op, overload: Any) -> None:
    """Tell DTensor the rules of an op's ``torch.ops`` overload."""
    register_sharding(overload)(lambda *args: rules(op, args))
