"""Holds a variant's outputs against the op's float64 reference. Used by the tests and by the tuner's gate alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from griffin_kernels import pieces, poison
from griffin_kernels.contract import Case, Inputs, Op, Tolerance, Variant, accumulator
from griffin_kernels.specs import expected_dtype


@dataclass(frozen=True)
class Error:
    """Error of one output against the reference; see Tolerance for the two figures. Infinite where NaN is."""

    output: str
    rel_norm: float
    worst: float


@dataclass(frozen=True)
class Verdict:
    """Errors of all outputs and, where something is wrong, one sentence that says what."""

    errors: tuple[Error, ...]
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def rel_norm(self) -> float:
        return max((e.rel_norm for e in self.errors), default=0.0)

    @property
    def worst(self) -> float:
        return max((e.worst for e in self.errors), default=0.0)


def blocks_of(tensor: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """``tensor`` in blocks of elements: in float64 one stays in a CPU's cache; on a GPU each costs a wait."""
    return torch.split(tensor.reshape(-1), 2**18 if like.device.type == "cpu" else 2**24)


def error_of(output: str, got: Tensor, want: Tensor) -> Error:
    """Both error figures of one output. got and want have the same shape; want is float64, perhaps on the host."""
    if want.numel() == 0:
        return Error(output, 0.0, 0.0)
    norm = torch.linalg.vector_norm(want).item()
    if math.isinf(norm):  # what ought to be infinite, and is, is no error
        agree = want.isinf() & (got.to(want.device) == want)
        got, want = got.masked_fill(agree.to(got.device), 0.0), want.masked_fill(agree, 0.0)
        norm = torch.linalg.vector_norm(want).item()
    rms = norm / math.sqrt(want.numel())
    squares, worst, biggest = 0.0, 0.0, 0.0
    for mine, kept in zip(blocks_of(got, got), blocks_of(want, got), strict=True):
        theirs = kept.to(mine.device)
        difference = (mine.double() - theirs).abs_()
        squares += difference.square().sum().item()
        biggest = max(biggest, difference.max().item())
        worst = max(worst, (difference / (theirs.abs() + rms)).max().item()) if norm else biggest
        if not math.isfinite(squares):  # max() lets NaN pass, a sum does not
            return Error(output, math.inf, math.inf)
    return Error(output, math.sqrt(squares) / norm if norm else biggest, worst)


def compare(
    op: Op, case: Case, got: tuple[Tensor | None, ...], want: tuple[Tensor | None, ...], tolerance: Tolerance
) -> Verdict:
    """Hold outputs against reference outputs: presence, shape, dtype, then both error figures."""
    found: list[Error] = []
    if len(got) != len(op.outputs):
        return Verdict((), f"gave {len(got)} outputs, {op.name} has {len(op.outputs)}")
    for (name, spec), mine, theirs in zip(op.outputs.items(), got, want, strict=True):
        if (mine is None) != (theirs is None):
            return Verdict(tuple(found), f"{name} is {'missing' if mine is None else 'there but should be None'}")
        if mine is None or theirs is None:
            continue
        if mine.shape != theirs.shape:
            return Verdict(tuple(found), f"{name} has shape {list(mine.shape)}, expected {list(theirs.shape)}")
        wide = accumulator(case.torch_dtype) if case.wide_parameters else None
        if mine.dtype != (dtype := expected_dtype(spec, case.torch_dtype, wide)):
            return Verdict(tuple(found), f"{name} is {mine.dtype}, expected {dtype}")
        error = error_of(name, mine, theirs)
        found.append(error)
        if not (error.rel_norm <= tolerance.rel_norm and error.worst <= tolerance.worst):
            return Verdict(
                tuple(found),
                f"{name} is wrong: relative norm {error.rel_norm:.2e} (allowed {tolerance.rel_norm:.2e}), "
                f"worst element {error.worst:.2e} (allowed {tolerance.worst:.2e})",
            )
    return Verdict(tuple(found), None)


def copy_of(value: Any) -> Any:
    """A copy of a tensor that has its strides, gaps included; None as it is."""
    if value is None:
        return None
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value)


def _same(value: Tensor, before: Tensor) -> bool:
    """Whether two tensors hold the same, NaN where the other has NaN; no copy of either is made whole."""
    pairs = zip(blocks_of(value, value), blocks_of(before, value), strict=True)
    return all(torch.equal(mine.nan_to_num(), theirs.nan_to_num()) for mine, theirs in pairs)


def check(
    op: Op, variant: Variant, case: Case, config: Any, inputs: Inputs, want: tuple[Tensor | None, ...] | None = None
) -> Verdict:
    """Run a variant once on poisoned memory (torch.compile's own buffers are not) and hold it against the reference.

    Inputs must come back unchanged. Those that the op works on in place are copied first, and given back by the run.
    """
    want = pieces.reference(op, inputs) if want is None else want
    inputs = inputs | {name: copy_of(inputs[name]) for name in op.in_place}
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    with poison.poisoned():
        got = variant.on(inputs, config)
    for name, value in inputs.items():
        if name in op.in_place:
            if got[list(op.outputs).index(name)] is not value:
                return Verdict((), f"does not give back the {name} that it is to change in place")
        elif isinstance(value, Tensor) and not _same(value, before[name]):
            return Verdict((), f"changed its input {name}")
    if (problem := _extraordinary(op, inputs, got)) is not None:
        return Verdict((), problem)
    return compare(op, case, got, want, op.tolerance(case).times(variant.slack if case.half else 1.0))


def _extraordinary(op: Op, inputs: Inputs, got: tuple[Tensor | None, ...]) -> str | None:
    """What is wrong where an output is no ordinary tensor: contiguous, no view, its memory its own and as large as it.

    torch.compile forbids operators whose outputs lie in the memory of another tensor. Views come to harm when they are
    changed in place: autograd refuses those that a Function gives with other outputs.
    """
    owners = {
        value.untyped_storage().data_ptr(): name
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.numel() and name not in op.in_place
    }
    present = [(name, value) for name, value in zip(op.outputs, got, strict=False) if value is not None]
    for name, value in present:
        if value.numel() and (owner := owners.setdefault(value.untyped_storage().data_ptr(), name)) != name:
            return f"its output {name} lies in the memory of {owner}"
    for name, value in present:
        if name in op.in_place:
            continue
        if value._is_view():
            return f"its output {name} is a view of another tensor"
        if not value.is_contiguous():
            return f"its output {name} has strides {value.stride()}, expected contiguous ones"
        held, needed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
        if held != needed:
            return f"its output {name} holds {held} bytes of memory, expected {needed}"
    return None
