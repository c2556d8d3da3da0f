"""Holds the tensors of a call against an op's TensorSpecs, and derives output shapes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import errors
from griffin_kernels.case import DTYPE_BYTES
from griffin_kernels.contract import LARGEST_INDEX, ROWS, Op, TensorSpec, accumulator, dtype_name

Sizes = dict[str, int]


_is_alias_of: Any = torch._C._is_alias_of  # type: ignore[attr-defined]

EITHER = ("state", "parameter")
"""Dtypes of specs that data and accumulators both have."""


def expected_dtype(spec: TensorSpec, data: torch.dtype, parameters: torch.dtype | None = None) -> torch.dtype:
    """The dtype of an output of ``spec`` for data of dtype ``data``; parameters: theirs, where it is another."""
    if spec.dtype == "data":
        return data
    if spec.dtype == "parameter":
        return parameters or data
    if spec.dtype in ("accumulator", "state"):
        return accumulator(data)
    return getattr(torch, spec.dtype)  # type: ignore[no-any-return]


def size_of(dim: str, sizes: Mapping[str, int]) -> int | None:
    """Size of a dim such as ``T``, ``3``, ``N+1`` or ``K-1``; None where its name is not bound yet."""
    for sign in "+-":
        name, separator, offset = dim.partition(sign)
        if separator:
            return None if name not in sizes else sizes[name] + int(sign + offset)
    return int(dim) if dim.isdigit() else sizes.get(dim)


def _bind_dim(dim: str, value: int, sizes: Sizes) -> bool:
    """Record what ``value`` says about ``dim``; False where it contradicts what is known."""
    known = size_of(dim, sizes)
    if known is not None:
        return known == value
    name = dim.partition("+")[0].partition("-")[0]
    sizes[name] = value - ((size_of(dim, {name: 0})) or 0)
    return True


def cut_dims(split: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Of dims that are cut together, those with as many parts as the first has: not the batch of what rows share."""
    first = sizes.get(split[0], 0)
    return [dim for dim in split if sizes.get(dim, first) >= first]


def data_dtype(op: Op, call: Any) -> torch.dtype:
    """The dtype of a call's data: that of its first data tensor."""
    first = next(name for name, spec in op.inputs.items() if spec.dtype == "data")
    return getattr(call, first).dtype  # type: ignore[no-any-return]


def parameter_dtype(op: Op, call: Any, gradient: str) -> torch.dtype | None:
    """The dtype of the parameter whose gradient an output is, by its name; of the first one, where it is not given."""
    parameters = {name: getattr(call, name) for name, spec in op.inputs.items() if spec.dtype == "parameter"}
    found = parameters.get(gradient.removeprefix("d"), next(iter(parameters.values()), None))
    return None if found is None else found.dtype


def is_on_host(name: str, value: Tensor) -> bool:
    """Whether an input is one that may be on the CPU beside data elsewhere, and is: there its values can be read."""
    return name in ("cu_seqlens", "cu_seqlens_k") and value.device.type == "cpu"


def bind(op: Op, call: Any) -> Sizes:
    """Sizes of all named dims of a call.

    N is the number of packed sequences where ``cu_seqlens`` is given, and B otherwise. Raises ArgumentError,
    ShapeError, DtypeError or DeviceMismatchError naming the argument, what came and what was expected.
    """
    sizes: Sizes = {}
    data: torch.dtype | None = None
    device: torch.device | None = None
    cu_seqlens = getattr(call, "cu_seqlens", None)
    if isinstance(cu_seqlens, Tensor) and cu_seqlens.dim() == 1:
        sizes["N"] = cu_seqlens.shape[0] - 1
    value: Any
    for (name, spec), value in zip(op.inputs.items(), call, strict=False):  # options follow the tensors
        if value is None:
            if not spec.optional:
                raise errors.ArgumentError(f"{op.name}: {name} is None, expected a tensor [{_listed(spec, {})}]")
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise errors.ArgumentError(f"{op.name}: {name} is a {kind}, expected a tensor [{_listed(spec, {})}]")
        if data is None:
            data, device = value.dtype, value.device
            if dtype_name(data) not in DTYPE_BYTES:
                known = ", ".join(DTYPE_BYTES)
                raise errors.DtypeError(f"{op.name}: {name} is {dtype_name(data)}, expected one of {known}")
        allowed = (data, accumulator(data)) if spec.dtype in EITHER else (expected_dtype(spec, data),)
        if value.dtype not in allowed:
            want = " or ".join(dict.fromkeys(map(dtype_name, allowed)))
            raise errors.DtypeError(f"{op.name}: {name} is {dtype_name(value.dtype)}, expected {want}")
        if value.device != device and not is_on_host(name, value):
            raise errors.DeviceMismatchError(f"{op.name}: {name} is on {value.device}, the first argument on {device}")
        before, dims = dict(sizes), spec.names
        fits = value.dim() == len(dims) and all([_bind_dim(*at, sizes) for at in zip(dims, value.shape, strict=True)])
        if not fits or min(sizes.values()) < 0:
            expected = f"expected [{_listed(spec, before)}]"
            raise errors.ShapeError(f"{op.name}: {name} has shape {list(value.shape)}, {expected}")
        if "B" in sizes and cu_seqlens is None:
            sizes.setdefault("N", sizes["B"])
    return sizes


def casts(op: Op, call: Any) -> dict[str, torch.dtype]:
    """Weights by name that are not in a dtype which the op takes beside its data, and what they are cast to first.

    Weights are floats without rows and steps. That is what the public functions do at every call.
    """
    if not isinstance(call[0], Tensor):
        return {}
    data = data_dtype(op, call)
    allowed = {"data": (data,), "parameter": (accumulator(data), data)}
    found = {}
    for name, spec in op.inputs.items():
        value = getattr(call, name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or {*ROWS, "T", "S"} & set(spec.names):
            continue
        if value.dtype not in (taken := allowed.get(spec.dtype, (value.dtype,))):
            found[name] = taken[0]
    return found


def check_values(op: Op, call: Any) -> None:
    """Raise ArgumentError where an index on the CPU holds a value that no variant could use, after ``bind``.

    Those on a GPU are not looked at: that would wait for the device.
    """
    for name in op.indices:
        value, least = getattr(call, name), op.inputs[name].least
        if value is None or value.device.type != "cpu":
            continue
        if least is not None and value.numel():
            low, high = map(int, torch.aminmax(value))
            if low < least or high > LARGEST_INDEX:
                wrong = low if low < least else high
                raise errors.ArgumentError(f"{op.name}: {name} has {wrong}, expected {least} to {LARGEST_INDEX}")
    if op.check is not None:
        op.check(call)


def check_destination(op: Op, call: Any, sizes: Mapping[str, int]) -> None:
    """Raise what is wrong with the tensor that a call gives for an output, if it gives one: by shape, dtype, device."""
    if op.destination is None or call.out is None:
        return
    out, spec = call.out, op.outputs[op.destination]
    if not isinstance(out, Tensor):
        raise errors.ArgumentError(
            f"{op.name}: out is a {type(out).__name__}, expected a tensor [{_listed(spec, sizes)}]"
        )
    shape, dtype = [size_of(dim, sizes) for dim in spec.names], expected_dtype(spec, data_dtype(op, call))
    if list(out.shape) != shape:
        raise errors.ShapeError(f"{op.name}: out has shape {list(out.shape)}, expected [{_listed(spec, sizes)}]")
    if out.dtype != dtype:
        raise errors.DtypeError(f"{op.name}: out is {dtype_name(out.dtype)}, expected {dtype_name(dtype)}")
    if out.device != call[0].device:
        text = f"{op.name}: out is on {out.device}, the first argument on {call[0].device}"
        raise errors.DeviceMismatchError(text)


def check_apart(op: Op, call: Any) -> None:
    """Raise ArgumentError where ``out`` lies in the memory of an input, or some of its elements in one place."""
    out = call.out
    if any([size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)]):
        raise errors.ArgumentError(f"{op.name}: out has several elements in one place: give it memory for each")
    for name in op.inputs:
        value = getattr(call, name)
        if value is not None and _is_alias_of(out, value) and overlap(out, value):
            raise errors.ArgumentError(f"{op.name}: out overlaps {name} in memory: give it memory of its own")


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage may share memory: columns of one buffer side by side do not.

    Rows whose gaps are not alike count as sharing where the spans of the tensors meet.
    """
    starts = [t.storage_offset() * t.itemsize for t in (a, b)]
    if not a.numel() or not b.numel():
        return False
    spans, rows = [_span(t) for t in (a, b)], [_span(t[0]) if t.dim() else t.itemsize for t in (a, b)]
    if starts[0] + spans[0] <= starts[1] or starts[1] + spans[1] <= starts[0]:
        return False
    steps = {t.stride(0) * t.itemsize for t in (a, b) if t.dim() and t.shape[0] > 1}
    if len(steps) != 1:
        return True
    step = steps.pop()
    between = (starts[1] - starts[0]) % step if step else 0
    return not (between >= rows[0] and between + rows[1] <= step)


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def _listed(spec: TensorSpec, sizes: Mapping[str, int]) -> str:
    parts = []
    for dim in spec.names:
        known = size_of(dim, sizes)
        parts.append(dim if known is None or dim.isdigit() else f"{dim}={known}")
    return ", ".join(parts)


def is_absent(name: str, spec: TensorSpec, call: Any) -> bool:
    """Whether a call has no such output: the input that it belongs to (dh0) is None, nor is it asked for (with_lse)."""
    belongs_to, asked = getattr(call, spec.of or name.removeprefix("d"), None), getattr(call, f"with_{name}", False)
    return spec.optional and belongs_to is None and not asked


def empty_outputs(op: Op, call: Any) -> tuple[Tensor, ...]:
    """Uninitialised outputs of a call, by shape and dtype alone; those that may be absent have no elements.

    Used to trace ops without running them; sizes may be symbolic.
    """
    sizes, data = bind(op, call), data_dtype(op, call)
    outputs = []
    for name, spec in op.outputs.items():
        shape = [0] if is_absent(name, spec, call) else [size_of(dim, sizes) for dim in spec.names]
        outputs.append(call[0].new_empty(shape, dtype=expected_dtype(spec, data, parameter_dtype(op, call, name))))
    return tuple(outputs)
