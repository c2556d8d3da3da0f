"""Batching rules: what an op does with a dimension that vmap maps over.

Where the rows of a batch are independent calls, the mapped dimension becomes part of the batch: one kernel for all.
Elsewhere the op is called once per entry and the results are stacked: where weights are mapped, where an output is a
sum over the batch (gradients of weights, sample by sample), where sequences are packed into a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.contract import ROWS, Op, TensorSpec

Rule = Callable[..., tuple[Any, Any]]


def _has_rows(spec: TensorSpec) -> bool:
    return bool(spec.names) and spec.names[0] in ROWS


def folds(op: Op, in_dims: Sequence[int | None], args: Sequence[Any]) -> bool:
    """Whether a mapped dimension of a call can become part of its batch."""
    if op.in_place:  # states are written where they are
        return False
    given = dict(zip(op.arguments, zip(args, in_dims, strict=True), strict=True))
    mapped = [spec for name, spec in op.inputs.items() if given[name][1] is not None]
    packed = given.get("cu_seqlens", (None, None))[0] is not None
    if packed or not all(map(_has_rows, mapped)) or not all(map(_has_rows, op.outputs.values())):
        return False
    rows: dict[str, int] = {}
    for name, spec in op.inputs.items():
        value, dim = given[name]
        if value is not None and _has_rows(spec):
            rows[spec.names[0]] = value.shape[1 if dim == 0 else 0]
    return rows.get("Ba", rows.get("B")) == rows.get("B")  # what all rows share stays one for each entry


def _folded(spec: TensorSpec | None, value: Any, dim: int | None, size: int) -> Any:
    """An argument with ``size`` times as many rows, or as it is where it has no rows."""
    if not isinstance(value, Tensor) or spec is None or not _has_rows(spec):
        return value
    entries = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return entries.flatten(0, 1)


def _split(out: Any, size: int) -> Any:
    """The rows of an output by entry; one that is absent has no elements."""
    if out is None:
        return None
    return out.expand(size, 0) if out.shape == (0,) else out.unflatten(0, (size, out.shape[0] // size))


def batching_rule(op: Op, call: Callable[..., Any]) -> Rule:
    """The rule of ``call``, the op with its arguments in order, as torch's ``register_vmap`` takes it.

    Raises TransformError where entries would change a state that they share.
    """
    specs = [op.inputs.get(name) for name in op.arguments]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        for name, dim in zip(op.arguments, in_dims, strict=True):
            if name in op.in_place and dim is None:
                raise errors.TransformError(
                    f"{op.name}: vmap maps over another argument but not over {name}, which each entry would change"
                )
        if folds(op, in_dims, args):
            outputs = call(*[_folded(*of, size) for of in zip(specs, args, in_dims, strict=True)])
            single = isinstance(outputs, Tensor)
            entries = [_split(out, size) for out in ((outputs,) if single else outputs)]
        else:
            calls = [
                call(*[x if dim is None else x.select(dim, at) for x, dim in zip(args, in_dims, strict=True)])
                for at in range(size)
            ]
            single = isinstance(calls[0], Tensor)
            by_output = zip(*([(one,) for one in calls] if single else calls), strict=True)
            entries = [None if outs[0] is None else torch.stack(outs) for outs in by_output]
        dims = [None if out is None else 0 for out in entries]
        return (entries[0], dims[0]) if single else (tuple(entries), tuple(dims))

    return rule
