"""Isolation: a value that is not finite reaches only what depends on it.

NaN or inf is planted in one place of a call's inputs: one step of one batch row, one row of a state, one slot of a
pool. The op's reference, run clean and planted, says which output elements depend on that place. A variant has to give
every other element bitwise as it does without the planted value; otherwise a broken document, sequence, row or slot
would spoil its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from griffin_kernels import catalog, pieces, verify
from griffin_kernels.contract import ROWS, Case, Inputs, Op, TensorSpec, Variant

STEPS = ("T", "S", "W", "R", "Ta")
"""Dimensions along which time runs: steps, keys, slots of a ring, steps of what may be the same in all of them."""

VALUES = (math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Planting:
    """Inputs with a value planted, and what the reference says of it.

    places: index tuples by input name; words: ``nan in x[1, 17]``. affected: per output, bool, True where an element
    depends on the place.
    """

    inputs: Inputs
    places: dict[str, tuple[int | slice, ...]]
    value: float
    affected: tuple[Tensor | None, ...]

    @property
    def words(self) -> str:
        named = [
            f"{name}[{', '.join(':' if isinstance(at, slice) else str(at) for at in place)}]"
            for name, place in self.places.items()
        ]
        return f"{self.value} in {', '.join(named)}"


def plantings(op: Op, inputs: Inputs, seed: int = 0, most: int | None = None) -> list[Planting]:
    """A NaN in one step of all inputs that run over time, then NaN, inf or -inf in one place of each input alone, of
    ``Op.together`` in one step of all.

    Weights are left alone, since every row depends on them. The places follow from ``seed``, and so does which inputs
    come first: that matters where there are to be at ``most`` so many. The reach is that of the reference in float64.
    An output without rows and steps, a weight's gradient, is a sum over all of them: one that is lost in some elements
    may be lost in all. So it is with the taps of a convolution, some of which do not count a sequence's last steps.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    data = {name for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point() and v.numel()}
    specs = {name: spec for name, spec in op.inputs.items() if name in data and set(ROWS) & set(spec.names)}
    over_time = [name for name, spec in specs.items() if _runs_over_time(spec, inputs[name])]
    groups = [over_time] if len(over_time) > 1 else []
    alone = [[name] for name in specs if name not in op.together] + [list(op.together)] * bool(op.together)
    turn = seed % max(len(alone), 1)
    groups += alone[turn:] + alone[:turn]
    clean = pieces.reference(op, inputs)
    found = []
    for count, names in enumerate(groups[:most]):
        row, back = torch.randint(2**30, (2,), generator=generator, dtype=torch.int64, device="cpu").tolist()
        places = {name: _place(specs[name], inputs[name], row, back) for name in names}
        value = VALUES[0] if names is over_time else VALUES[(count + seed) % len(VALUES)]
        given = dict(inputs)
        for name, place in places.items():
            given[name] = verify.copy_of(inputs[name])
            given[name][place] = value
        given = _consistent(op, inputs, given, names)
        affected: list[Tensor | None] = []
        for spec, before, after in zip(op.outputs.values(), clean, pieces.reference(op, given), strict=True):
            reached = None if before is None or after is None else ~same(before, after)
            if reached is not None and not {*ROWS, *STEPS} & set(spec.names):
                reached = reached.any().expand(reached.shape)
            affected.append(reached)
        found.append(Planting(given, places, value, tuple(affected)))
    return found


def _consistent(op: Op, inputs: Inputs, given: Inputs, planted: list[str]) -> Inputs:
    """Planted inputs of a gradient whose forward results are those of the planted call, where they differ.

    As in a program, where what is broken comes out of the forward pass broken: some gradients take that from their
    arguments and some do it again. A place in a forward result alone stays alone.
    """
    if op.forward is None or set(planted) <= set(catalog.op(op.forward).outputs):
        return given
    first = catalog.op(op.forward)
    names = (*first.inputs, *first.options)
    options = {name: True for name in first.options if name.startswith("with_")}
    needed = {name for name, spec in first.inputs.items() if not spec.optional}
    if not set(names) <= given.keys() | options.keys() or any(given[name] is None for name in needed):
        return given  # the gradient does not need all that the forward pass does
    calls = [
        pieces.reference(first, options | {name: call[name] for name in names if name in call})
        for call in (inputs, given)
    ]
    for name, before, after in zip(first.outputs, *calls, strict=True):
        if name in op.inputs and before is not None and after is not None and isinstance(given.get(name), Tensor):
            changed = ~same(before, after)
            copy = verify.copy_of(given[name])
            copy[changed] = after[changed].to(copy.dtype)
            given[name] = copy
    return given


def _runs_over_time(spec: TensorSpec, tensor: Tensor) -> bool:
    """Whether a tensor has a row for every step, or for every key."""
    return any(
        name in ("T", "S") or (name == "Ta" and size > 1) for name, size in zip(spec.names, tensor.shape, strict=True)
    )


def _place(spec: TensorSpec, tensor: Tensor, row: int, back: int) -> tuple[int | slice, ...]:
    """One row and one step, counted from the end, since keys that were carried come before the first step."""
    return tuple(
        row % size if name in ROWS else size - 1 - back % size if name in STEPS else slice(None)
        for name, size in zip(spec.names, tensor.shape, strict=True)
    )


def same(first: Tensor, second: Tensor) -> Tensor:
    """bool, True where two tensors of one dtype hold the same bits, or both NaN."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    equal = first.contiguous().view(bits) == second.contiguous().view(bits)
    return equal | (first.isnan() & second.isnan())


def check(
    op: Op, variant: Variant, case: Case, config: object, inputs: Inputs, planted: list[Planting] | None = None
) -> str | None:
    """What leaks in a variant, in one sentence; None where nothing does.

    planted: ``plantings(op, inputs)``, for callers that check several variants on the same inputs.
    """

    def run(given: Inputs) -> tuple[Tensor | None, ...]:
        outputs = variant.on(given | {name: verify.copy_of(given[name]) for name in op.in_place}, config)
        return tuple(None if out is None else out.detach() for out in outputs)

    clean = run(inputs)
    for planting in plantings(op, inputs) if planted is None else planted:
        outputs = run(planting.inputs)
        for name, before, after, affected in zip(op.outputs, clean, outputs, planting.affected, strict=True):
            if before is None or after is None or affected is None:
                continue
            leaks = ~same(before, after) & ~affected.to(before.device)
            if bool(leaks.any()):
                where = leaks.nonzero()[0].tolist()
                return f"{planting.words} changes {name}{where}, which does not depend on it ({case.key})"
    return None
