"""Isolation over the whole table: what is planted in one document, sequence, row, slot or step stays there."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator

import msgspec
import pytest
import torch

from griffin_kernels import catalog, planted
from tests.everywhere import device_of

ALL = os.environ.get("GRIFFIN_TEST_PLANTS") == "all"
"""Every plant also in Triton's interpreter, which takes a second or more for each; else it gets two a case."""

SHORT_STEPS = 37
"""Steps of a case in the interpreter: several tiles or chunks of the smallest configurations."""


@functools.cache
def planted_cases(op_name: str, slow: bool = False):
    """Of an op's small cases one for each combination of flags and data, float32 where there is one.

    slow: one for each combination of flags and of kinds of slots, and no longer than SHORT_STEPS; of combinations with
    a minor flag as many as have every pair of flags.
    """
    found = {}
    for case in catalog.op(op_name).cases_tagged("smoke", "edge"):
        told = ("pad_zero", "dst_slots") if slow else ("h0", "strided", "slots", "pad_zero", "dst_slots")
        kind = (case.flags, *(name in case.data for name in told))
        if case.dims.get("T", 2) > 1 and (
            kind not in found or (found[kind].dtype != "float32" and case.dtype == "float32")
        ):
            found[kind] = case
    if not slow:
        return list(found.values())
    minor, seen, few = set(catalog.op(op_name).minor_flags), set(), []
    for case in sorted(found.values(), key=lambda case: len(case.flags), reverse=True):
        pairs = {*itertools.combinations(case.flags, 2), *case.flags}
        if pairs - seen or not minor & set(case.flags):
            few.append(_shortened(case))
            seen |= pairs
    return few


def _shortened(case):
    """The case with fewer steps; keys that were carried stay as many."""
    less = max(case.dims.get("T", 0) - SHORT_STEPS, 0)
    dims = {name: size - less if name in ("T", "S") else size for name, size in case.dims.items()}
    return msgspec.structs.replace(case, dims=dims)


@functools.cache
def problem(op_name: str, case, device: torch.device, seed: int, most: int | None):
    op = catalog.op(op_name)
    inputs = op.make_inputs(case, device, 0)
    return inputs, planted.plantings(op, inputs, seed, most)


def config_of(variant):
    """The default, with its shortest chunks, if it has any: what is not finite must not get from one to another."""
    shortest = {"chunk": min(variant.axes["chunk"])} if "chunk" in variant.axes else {}
    return dataclasses.replace(variant.config(), **shortest)


def table() -> Iterator[object]:
    for op in catalog.ops().values():
        for variant in catalog.variants(op.name).values():
            slow = variant.backend == "triton" and not (ALL or torch.cuda.is_available())
            for seed, case in enumerate(planted_cases(op.name, slow)):
                if variant.reject(case, device_of(variant.backend), config_of(variant)) is None:
                    few = (seed, 2) if slow else (0, None)
                    yield pytest.param(op, variant, case, *few, id=f"{variant.key}/{case.key}")


@pytest.mark.parametrize(("op", "variant", "case", "seed", "most"), list(table()))
def test_what_is_planted_reaches_only_what_depends_on_it(op, variant, case, seed, most):
    inputs, plantings = problem(op.name, case, device_of(variant.backend).torch_device, seed, most)
    assert planted.check(op, variant, case, config_of(variant), inputs, plantings) is None


def documents(op, inputs) -> torch.Tensor | None:
    """int64 [B, T]: a number for the document that each step belongs to; None for an op without time."""
    sizes = {
        name: inputs[key].shape[at]
        for key, spec in op.inputs.items()
        if inputs[key] is not None
        for at, name in enumerate(spec.names)
        if name in ("B", "T")
    }
    if "T" not in sizes:
        return None
    begins = torch.zeros(sizes["B"], sizes["T"], dtype=torch.bool, device="cpu")
    if inputs.get("reset") is not None:
        begins |= inputs["reset"]
    if inputs.get("segment_pos") is not None:
        begins |= inputs["segment_pos"] == 0
    backwards = bool(inputs.get("reverse"))
    if (offsets := inputs.get("cu_seqlens")) is not None:
        for start, end in itertools.pairwise(offsets.tolist()):
            if end > start:
                begins[0, end - 1 if backwards else start] = True
    if backwards:
        begins = begins.flip(1)
    numbers = begins.long().cumsum(1) + torch.arange(sizes["B"], dtype=torch.int64, device="cpu")[:, None] * 2**32
    return numbers.flip(1) if backwards else numbers


def check_apart(inputs, key: int, of_keys: torch.Tensor, affected: torch.Tensor) -> None:
    """What is planted in a key reaches queries of its packed sequence, or no query."""
    sequence = int(torch.searchsorted(of_keys, key, right=True)) - 1
    begin, end = inputs["cu_seqlens"][[sequence, min(sequence + 1, len(of_keys) - 1)]].tolist()
    reached = affected.flatten(2).any(2)[0]
    assert not reached[:begin].any() and not reached[end:].any(), (key, begin, end)


@pytest.mark.parametrize("op", catalog.ops().values(), ids=catalog.ops())
def test_references_keep_documents_rows_and_steps_apart(op):
    """The reference decides what may change, so that it is held here against what the words mean."""
    seen = 0
    for case, seed in itertools.product(planted_cases(op.name), range(3)):
        inputs = op.make_inputs(case, torch.device("cpu"), seed)
        numbers = documents(op, inputs)
        for planting in planted.plantings(op, inputs, seed):
            for name, place in planting.places.items():
                spec = op.inputs[name].names
                if "Ta" in spec and numbers is not None and inputs[name].shape[:2] == numbers.shape:
                    spec = ("B", "T", *spec[2:])
                if numbers is None or not {"T", "S"} & set(spec) or len(planting.places) > 1:
                    continue
                row = place[spec.index("B")]
                if (of_keys := inputs.get("cu_seqlens_k")) is not None and "S" in spec:
                    check_apart(inputs, place[spec.index("S")], of_keys, planting.affected[0])
                    seen += 1
                    continue
                if "S" in spec:
                    step = place[spec.index("S")] - (inputs[name].shape[spec.index("S")] - numbers.shape[1])
                else:
                    step = place[spec.index("T")]
                time = torch.arange(numbers.shape[1], dtype=torch.int64, device="cpu")
                allowed = numbers == numbers[row, max(step, 0)]
                if op.forward is None:
                    # a window to the right reads keys so many steps ahead, and no further
                    allowed &= time <= step if inputs.get("reverse") else time >= step - inputs.get("right", 0)
                for output, affected in zip(op.outputs, planting.affected, strict=True):
                    if affected is None or "T" not in op.outputs[output].names:
                        continue
                    names = op.outputs[output].names
                    others = [at for at, dim in enumerate(names) if dim not in ("B", "T")]
                    reached = affected.amax(others) if others else affected
                    assert not (reached & ~allowed).any(), (planting.words, output, case.key)
                    seen += int(reached.sum())
    assert seen or "T" not in {dim for spec in op.inputs.values() for dim in spec.names}
